"""A program that Serve starts in HAProxy's place: it changes the configuration, and becomes HAProxy.

Serve writes the whole configuration itself and has no setting for what is changed here. A configuration that is not as
expected is refused: a service that listens where it should not, or for ever, is worse than none.

This file is copied to where rayapp is not (proxy.haproxy_script): it imports the standard library alone, and
nothing from __future__, which a copy that begins with a line of shell may not.
"""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

LOOPBACK = "127.0.0.1"
# HAProxy's own; Serve binds them to every interface (ray issue 62976 made the port a setting, not the address)
PAGES = ("frontend prometheus", "listen stats")
SERVICE = "frontend http_frontend"
# HAProxy can ask again only what it has whole when it first passes it on: without http-buffer-request that leaves out
# every client that sends head and body apart. It also counts the body, as far as the buffer goes, as part of the
# request's arrival, for which Serve sets no limit: whoever sends slowly would hold a connection for ever.
LIMITS = """    option http-buffer-request
    timeout http-request {seconds}s
    http-error status 408 content-type application/json string '{{"error": "{told}"}}'
"""
LATE = "the request did not arrive within {seconds} seconds; send less at once, or over a faster connection"
# Every path is the application's, which says itself what it does not know: a proxy that finds no application was not
# told of it yet, as on a node that has just come (back). Serve would have it answer 404, which no client asks again.
NOWHERE = "backend default_backend"
_NOT_FOUND = re.compile(r"(?m)^( *http-request return) status 404 .*$")
NOT_YET = (
    r"\1 status 503 content-type application/json string"
    """ '{"error": "the service starts; ask again"}' hdr Retry-After 1"""
)
PR_SET_PDEATHSIG = 1  # of Linux's prctl
_CLIENT = re.compile(r"(?m)^ *timeout client (\d+)s *$")
_BIND = re.compile(r"(?m)^( *bind) (.*):(\d+)( .*)?$")


class Unexpected(Exception):  # noqa: N818 - its sentence is all there is to it
    """Serve's configuration is not the one that this was written for."""


def changed(config: str, host: str = "") -> str:
    """The configuration as we need it; the service listens on host where one is given, else where Serve says.

    Raises Unexpected where a line that has to be changed is not there, or somebody listens of whom we do not know.
    """
    parts = re.split(r"(?m)^(?=[a-z])", config)  # sections begin in the first column
    names = [part.partition("\n")[0].strip() for part in parts]
    for name in (*PAGES, SERVICE, NOWHERE, "defaults"):
        if names.count(name) != 1:
            raise Unexpected(f"it has {names.count(name)} sections '{name}', not one")
    changes: dict[str, Callable[[str], str]] = {name: lambda part: _moved(part, LOOPBACK) for name in PAGES}
    changes[SERVICE] = lambda part: _moved(part, host)
    changes["defaults"], changes[NOWHERE] = _with_limits, _not_yet
    unknown = [name for name, part in zip(names, parts, strict=True) if _BIND.search(part) and name not in changes]
    if unknown:
        raise Unexpected(f"it listens in '{unknown[0]}', which is not known")
    return "".join(changes.get(name, str)(part) for name, part in zip(names, parts, strict=True))


def _moved(section: str, host: str) -> str:
    """The section with its one listener on host, or where it is if that is empty."""
    if len(_BIND.findall(section)) != 1:
        raise Unexpected(f"'{section.partition(chr(10))[0].strip()}' has not one line 'bind HOST:PORT'")
    options = " v4v6" if host == "::" else ""  # as other programs do: IPv4 too
    return _BIND.sub(rf"\1 {host}:\3\4{options}", section) if host else section


def _with_limits(defaults: str) -> str:
    """The section with a limit on a request's arrival: as long as a client may be silent."""
    found = _CLIENT.findall(defaults)
    if len(found) != 1:
        raise Unexpected("'defaults' has not one line 'timeout client SECONDSs'")
    added = LIMITS.format(seconds=found[0], told=LATE.format(seconds=found[0]))
    return defaults.replace("\n", f"\n{added}", 1)


def _not_yet(section: str) -> str:
    """The section with an answer that says that the service will be there."""
    if len(_NOT_FOUND.findall(section)) != 1:
        raise Unexpected(f"'{NOWHERE}' has not one line 'http-request return status 404'")
    return _NOT_FOUND.sub(NOT_YET, section)


def ends_with_its_parent() -> None:
    """Let the kernel end this process with the one that started it, which outlives an exec.

    Serve's proxy, however it dies, would else leave an HAProxy that holds the port and answers 500. The kernel looks at
    the thread that started us: Serve's is the one of its event loop, which lives as long as its process.
    """
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("rayapp does not start HAProxy: Serve's proxy has ended")


def main(binary: str, host: str, words: list[str]) -> None:
    """Become HAProxy with its command line's words; the configuration is the one behind -f."""
    if "-f" in words:
        path = Path(words[words.index("-f") + 1])
        try:
            config = changed(path.read_text(encoding="utf-8"), host)
        except Unexpected as error:
            sys.exit(
                f"rayapp does not start HAProxy: the configuration that Ray Serve wrote is not as expected: {error};"
                " take the version of Ray that constraints.txt names, or serve with --haproxy false"
            )
        path.write_text(config, encoding="utf-8")
    ends_with_its_parent()
    os.execv(binary, [binary, *words])  # noqa: S606 - this process is HAProxy from here on: Serve knows it by its pid


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
