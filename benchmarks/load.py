"""A client that knows what became of every request: open loop (a constant rate) and closed loop (so many clients).

It costs more CPU than wrk, so it measures failures, versions and gaps, and not the highest throughput.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import aiohttp
import orjson

BOUNDARY = "rayapp-benchmark-boundary"
TIMEOUT_S = 30.0  # longer is a failure
RETRY_PAUSE_S = (
    0.02  # of a closed-loop client whose connection was refused: else it would count a failure a millisecond
)

Judge = Callable[[str, Any], str]  # (X-Model-Version, answer) -> what is wrong with it, nothing where it is right


@dataclass(frozen=True)
class Question:
    """A request that can be posted again and again, and who judges its answers; wants is the right status."""

    path: str
    body: bytes
    judge: Judge | None = None
    wants: int = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request. Times in seconds of time.monotonic(); problem is empty where all is well."""

    sent_s: float
    done_s: float
    version: str
    problem: str

    @property
    def good(self) -> bool:
        """Whether it was answered, and rightly."""
        return not self.problem


def question(images: Sequence[bytes], *, batch: bool = False, judge: Judge | None = None, wants: int = 200) -> Question:
    """A POST of images to /predict_image or /predict_batch as multipart/form-data."""
    name = "images" if batch else "image"
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{n}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + image
        + b"\r\n"
        for n, image in enumerate(images)
    ]
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return Question("/predict_batch" if batch else "/predict_image", body, judge, wants)


class Client:
    """Posts questions to a server and keeps what became of them, in the order of the answers."""

    def __init__(self, url: str, timeout: aiohttp.ClientTimeout | None = None) -> None:
        self._url, self._timeout = url, timeout or aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._session: aiohttp.ClientSession | None = None
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=self._timeout,
            headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def post(self, asked: Question) -> Answer:
        """What became of one request, which is kept too. A request is never sent twice."""
        assert self._session is not None
        sent_s, version = time.monotonic(), ""
        try:
            async with self._session.post(self._url + asked.path, data=asked.body) as response:
                body = await response.read()
                version = response.headers.get("x-model-version", "")
                problem = "" if response.status == asked.wants else f"status {response.status}"
                if not problem and asked.judge is not None:
                    problem = asked.judge(version, orjson.loads(body))
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
            problem = type(error).__name__
        answer = Answer(sent_s, time.monotonic(), version, problem)
        self.answers.append(answer)
        return answer


async def open_loop(client: Client, questions: Sequence[Question], *, rate: float, until: asyncio.Event) -> None:
    """Post at a constant rate (requests a second), however long the answers take, until the event is set."""
    under_way: set[asyncio.Task[Answer]] = set()
    started, number = time.monotonic(), 0
    while not until.is_set():
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        task = asyncio.create_task(client.post(questions[number % len(questions)]))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        number += 1
    await asyncio.gather(*under_way)


async def closed_loop(client: Client, questions: Sequence[Question], *, clients: int, until: asyncio.Event) -> None:
    """Post from so many clients, each of which waits for its answer, until the event is set."""

    async def one(number: int) -> None:
        while not until.is_set():
            answer = await client.post(questions[number % len(questions)])
            number += clients
            if not answer.good:
                await asyncio.sleep(RETRY_PAUSE_S)

    await asyncio.gather(*(one(number) for number in range(clients)))


async def during(work: Awaitable[None], *loads: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Do some work while loads run; they end when it does, even where it fails."""
    until = asyncio.Event()
    running = [asyncio.ensure_future(load(until)) for load in loads]
    try:
        await work
    finally:
        until.set()
        await asyncio.gather(*running)


# --- what the answers say ---------------------------------------------------------------------------------------------


def failures(answers: Iterable[Answer]) -> Counter[str]:
    """How many requests had which problem."""
    return Counter(answer.problem for answer in answers if not answer.good)


def rates(answers: Iterable[Answer], *, start_s: float, end_s: float, width_s: float) -> list[float]:
    """Good answers per second in each interval of width_s between two times."""
    counts = [0] * max(1, int((end_s - start_s) / width_s))
    for answer in answers:
        at = int((answer.done_s - start_s) / width_s)
        if answer.good and answer.done_s >= start_s and at < len(counts):
            counts[at] += 1
    return [count / width_s for count in counts]


def seconds_to_full_speed(
    answers: Sequence[Answer],
    *,
    event_s: float,
    end_s: float,
    before_s: float = 5.0,
    width_s: float = 0.5,
    window_s: float = 2.0,
) -> float | None:
    """Seconds from an event until a window began in which the rate of good answers was 90 % of what it was before.

    None where there was no such window until end_s; 0 where the event changed nothing.
    """
    usual = mean(rates(answers, start_s=event_s - before_s, end_s=event_s, width_s=width_s))
    after = rates(answers, start_s=event_s, end_s=end_s, width_s=width_s)
    window = round(window_s / width_s)
    for at in range(len(after) - window + 1):
        if mean(after[at : at + window]) >= 0.9 * usual:
            return at * width_s
    return None


def longest_gap_s(answers: Iterable[Answer], *, start_s: float, end_s: float) -> float:
    """Longest time without any good answer between two times."""
    times = sorted(a.done_s for a in answers if a.good and start_s <= a.done_s <= end_s)
    stops = [start_s, *times, end_s]
    return max(after - before for before, after in itertools.pairwise(stops))
