"""Whether a Ray cluster answers at RAY_ADDRESS, said in seconds: ray.init goes on trying for 14 minutes."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from rayapp.config.env import ray_folder, ray_uses_tls
from rayapp.errors import ConfigError

FORMS = "HOST:PORT of the head (6379 unless it was started otherwise), auto, local or ray://HOST:PORT"
NOTE = "ray_current_cluster"  # the file in which Ray keeps what auto means
CONNECT_TIMEOUT_S, READY_TIMEOUT_S = 3.0, 4.0


def check_address(address: str) -> None:
    """Returns where a Ray cluster answers at address, in at most 10 s. Raises ConfigError that says why none does."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={address} is the address of a dashboard, which `ray job submit` takes from"
            f" RAY_API_SERVER_ADDRESS too; name it there, and set RAY_ADDRESS to {FORMS}, or unset it"
        )
    place = _noted() if address == "auto" else address
    if place is None:  # Ray looks for the processes of a cluster then, which takes no time
        return
    host, port = _host_and_port(place, address)
    if fault := _why_no_answer(host, port, grpc=not place.startswith("ray://")):
        where = f"{address} ({NOTE} in {ray_folder()} says {place})" if address == "auto" else address
        raise ConfigError(
            f"no Ray cluster answers at RAY_ADDRESS={where}: {fault}; start one there with ray start --head, or set"
            f" RAY_ADDRESS to {FORMS}; where it is unset, Ray is started in the process"
        )


def _noted() -> str | None:
    """The cluster that ray start joined last on this machine; None where there is no note of it."""
    try:
        return (ray_folder() / NOTE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _host_and_port(place: str, address: str) -> tuple[str, int]:
    scheme, separator, rest = place.rpartition("://")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number
        host, port = None, None
    if not host or not port or (separator and scheme != "ray"):
        raise ConfigError(f"RAY_ADDRESS={address} names no Ray cluster; set it to {FORMS}, or unset it")
    return host, port


def _why_no_answer(host: str, port: int, *, grpc: bool) -> str:
    """Empty where something answers: by TCP, and then as a cluster's head does, by gRPC."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return str(error.strerror or error)
    if not grpc or ray_uses_tls():  # its certificates are Ray's business
        return ""
    return "" if _speaks_grpc(host, port) else "what listens there is no head of a Ray cluster"


def _speaks_grpc(host: str, port: int) -> bool:
    import grpc

    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=READY_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True
