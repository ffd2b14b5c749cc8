"""Call and Answer: what the endpoints and those who write down what they did know of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Receive

from rayapp.serve import forms
from rayapp.serve.forms import Headers
from rayapp.serve.replica import Predicted

JSON, PNG = b"application/json", b"image/png"


@dataclass(slots=True)
class Call:
    """A request to an endpoint. Its body is read by the handler, for some can be refused before."""

    path: str
    headers: Headers
    receive: Receive
    client: str  # its address, as far as the server knows
    num_bytes: int = 0  # of the body, once it was read

    async def body(self, max_bytes: int) -> bytes:
        """The whole body; raises RequestError beyond max_bytes."""
        body = await forms.read_body(self.headers, self.receive, max_bytes)
        self.num_bytes = len(body)
        return body


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client gets, and for predictions what is looked at after it has been sent."""

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    predicted: Predicted | None = None
    files: Sequence[bytes] = ()
    error: str = ""
