"""Request and Response: what the endpoints, and those who write down what they did, know of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import Receive

from rayapp.errors import RequestError

if TYPE_CHECKING:
    from rayapp.serve.replica import Prediction

Headers = dict[bytes, bytes]

JSON, PNG, PICKLE = b"application/json", b"image/png", b"application/vnd.bentoml+pickle"
FREE_BYTES = 64 * 2**10


class ClientGone(Exception):  # noqa: N818 - nobody's error
    """The client closed its connection before its request was read."""


def media_type(headers: Headers) -> bytes:
    """The content type without its parameters, in lower case; empty where there is none."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


class MemoryBudget:
    """The bytes of all bodies that are in memory, and how many there may be."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.used = 0

    def take(self, num_bytes: int) -> None:
        """Count num_bytes more. Raises RequestError (503) where there is no room for them."""
        if self.used + num_bytes > self._max_bytes:
            raise RequestError(
                f"the server is busy: requests of {self.used} bytes wait already (limit {self._max_bytes}); try again",
                503,
            )
        self.used += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Count num_bytes less."""
        self.used -= num_bytes


@dataclass(slots=True)
class Request:
    """A request to an endpoint. Its body is read by the handler, for some can be refused before."""

    path: str
    headers: Headers
    receive: Receive
    client: str  # its address, as far as the server knows
    budget: MemoryBudget
    num_bytes: int = 0  # of the body, as far as it was read
    is_arriving: bool = False  # the body was asked for, and is not whole

    async def read(self, max_bytes: int) -> bytes:
        """The whole body. Raises RequestError (413 beyond max_bytes whatever Content-Length says, 415 for a pickle,
        503 where there is no room), or ClientGone.
        """
        too_large = RequestError(f"the request has more than the limit of {max_bytes} bytes; send less at once", 413)
        if media_type(self.headers) == PICKLE:
            raise RequestError(f"{PICKLE.decode()} is not allowed in main server", 415)
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > max_bytes):
            raise too_large
        chunks, more, self.is_arriving = [], True, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if self.num_bytes + len(chunk) > max_bytes:
                raise too_large
            self._take(len(chunk))
            chunks.append(chunk)
        self.is_arriving = False
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @property
    def counted(self) -> int:
        """The bytes that count: the first of a request are free, so that senders of large ones stop no other."""
        return max(0, self.num_bytes - FREE_BYTES)

    def _take(self, num_bytes: int) -> None:
        before = self.counted
        self.num_bytes += num_bytes
        try:
            self.budget.take(self.counted - before)
        except RequestError:
            self.num_bytes -= num_bytes
            raise


@dataclass(frozen=True, slots=True)
class Response:
    """What the client gets, and for predictions what is looked at after it has been sent."""

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    predicted: Prediction | None = None
    files: Sequence[bytes] = ()
    error: str = ""
