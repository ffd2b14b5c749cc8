"""Call and Answer: what the endpoints and those who write down what they did know of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Receive

from rayapp.errors import RequestError
from rayapp.serve import multipart
from rayapp.serve.multipart import Headers
from rayapp.serve.replica import Prediction

JSON, PNG = b"application/json", b"image/png"
FREE_BYTES = 64 * 2**10


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
        """They are no longer needed."""
        self.used -= num_bytes


@dataclass(slots=True)
class Request:
    """A request to an endpoint. Its body is read by the handler, for some can be refused before."""

    path: str
    headers: Headers
    receive: Receive
    client: str  # its address, as far as the server knows
    room: MemoryBudget
    num_bytes: int = 0  # of the body, as far as it was read
    is_arriving: bool = False  # the body was asked for, and is not whole

    async def body(self, max_bytes: int) -> bytes:
        """The whole body; raises RequestError beyond max_bytes, or where there is no room for it."""
        self.is_arriving = True
        whole = await multipart.read_body(self.headers, self.receive, max_bytes, self._take)
        self.is_arriving = False
        return whole

    @property
    def counted(self) -> int:
        """The bytes that take room: the first of a request are free, so that senders of large ones stop no other."""
        return max(0, self.num_bytes - FREE_BYTES)

    def _take(self, num_bytes: int) -> None:
        before = self.counted
        self.num_bytes += num_bytes
        try:
            self.room.take(self.counted - before)
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
