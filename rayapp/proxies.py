"""HTTP and the proxies that the environment names: loopback is asked directly, of others it is said who was asked."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests.utils

if TYPE_CHECKING:
    import httpx

NO_PROXY_ADVICE = "add the host to NO_PROXY, as: export NO_PROXY=127.0.0.1,localhost"


def http_client(url: str, **options: Any) -> httpx.Client:
    """A client for one server. http_proxy would send what is meant for this machine to another one's loopback."""
    import httpx

    host = _host(url)
    direct = {f"all://{f'[{host}]' if ':' in host else host}": None} if is_loopback(url) else None
    return httpx.Client(mounts=direct, **options)


def proxy_of(url: str) -> str | None:
    """The proxy that the environment (http_proxy, all_proxy, NO_PROXY) names for url, without its password."""
    found = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    return re.sub(r"//[^/@]*@", "//***@", found) if found else None


def through(url: str) -> str:
    """ " through the proxy ..." for what is said of a server that does not answer; empty where it is asked directly."""
    proxy = None if is_loopback(url) else proxy_of(url)
    return f" through the proxy {proxy}" if proxy else ""


def is_loopback(url: str) -> bool:
    """Whether url leads to this machine without leaving it."""
    host = _host(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""
