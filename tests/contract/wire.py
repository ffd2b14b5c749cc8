"""Requests as bytes on a socket, and what is to be said of their answers: no HTTP client would send most of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass
from typing import Literal

Layer = Literal["image", "form", "json", "http"]
ANSWER_S = 60.0  # how long a whole request may take
SOON_S = 0.2  # how long an answer to what may be a part of a request is waited for


@dataclass(frozen=True)
class Case:
    """A request as it goes over the wire."""

    name: str  # what was done to it
    layer: Layer
    data: bytes
    whole: bool = True  # HTTP itself is in order: an answer must come, and from the endpoint
    method: bytes = b"POST"


def request(path: bytes, body: bytes, *headers: bytes, method: bytes = b"POST") -> bytes:
    """A request with a length, after which the connection ends."""
    lines = [b"%s %s HTTP/1.1" % (method, path), b"Host: x", b"Connection: close", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body


def form(parts: list[tuple[bytes, bytes]], boundary: bytes = b"XbX") -> tuple[bytes, bytes]:
    """The body of parts (head, content), and the header that goes with it."""
    body = b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, *part) for part in parts) + b"--%s--\r\n" % boundary
    return body, b"Content-Type: multipart/form-data; boundary=" + boundary


def file_head(field: bytes, name: bytes = b"a.png") -> bytes:
    """The head of a part that is a file."""
    return b'Content-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: image/png' % (field, name)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def from_endpoint(self) -> bool:
        """Whether an endpoint answered, not the HTTP server, a proxy or the router before it."""
        return "x-bentoml-request-id" in self.headers


def send(address: tuple[str, int], case: Case) -> Answer | None:
    """The (first) answer to a case; None where none came."""
    with socket.create_connection(address, timeout=ANSWER_S) as connection:
        with contextlib.suppress(OSError):  # refused before its end: the answer may be there all the same
            connection.sendall(case.data)
        connection.settimeout(ANSWER_S if case.whole else SOON_S)
        answer = http.client.HTTPResponse(connection, method=case.method.decode("latin-1"))
        try:
            answer.begin()
            connection.settimeout(ANSWER_S)
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            answer.close()


def same(body: bytes, other: bytes) -> bool:
    """Whether two answers of /predict_image are one: a batch of other images beside it changes the last digits."""
    one, two = (json.loads(text)["probabilities"] for text in (body, other))
    return list(one) == list(two) and all(abs(one[name] - two[name]) < 1e-5 for name in one)


def complaint(case: Case, answer: Answer | None) -> str | None:
    """What is wrong with the answer to a case; None where it is as it should be."""
    if answer is None:
        return "no answer" if case.whole else None
    if answer.status >= 500:
        return f"status {answer.status}: {answer.body[:200]!r}"
    if case.whole and not answer.from_endpoint:
        return f"the endpoint was not asked: {answer.status} {answer.body[:100]!r}"
    if not answer.from_endpoint:
        return None
    if answer.headers.get("content-type") != "application/json":
        return f"content type {answer.headers.get('content-type')!r}, status {answer.status}"
    try:
        content = json.loads(answer.body)
    except ValueError:
        return f"no JSON, status {answer.status}: {answer.body[:200]!r}"
    if answer.status == 200:
        return None
    error = content.get("error") if isinstance(content, dict) else None
    return None if isinstance(error, str) and error else f"no error in {answer.body[:200]!r}"
