"""Rollout: follows the aliases for all replicas. It decides; followers (follower.py) in the replicas do it.

A new version is prepared everywhere (downloaded, verified, loaded, warmed beside the old one) and then taken by all
together. Where one replica cannot prepare it, none takes it: the old model serves on, a log line and a gauge of
/metrics say why, and it is tried again later. A registry that does not answer changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from rayapp.config.serve import ServeArgs
from rayapp.errors import RayAppError, RegistryUnavailable
from rayapp.registry.uris import ModelVersion

RESOLVE_TIMEOUT_S = 4.0  # longer than a registry takes to say that it is there
MAX_RETRY_S = 60.0  # between two attempts at a version that fails; the alias itself is looked at every poll_s

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)


class ReplicaStatus(NamedTuple):
    """What one replica serves: the champion and, where there is one, the second model beside it."""

    champion: ModelVersion
    second: ModelVersion | None


class Refusal(NamedTuple):
    """Why a version was not taken: the class of the error for metrics, its sentence for people."""

    version: str
    kind: str
    reason: str


class Fleet(Protocol):
    """All replicas, asked at once. One that dies meanwhile is not among the answers; one that comes later is told."""

    async def poll(self, *, resolved: bool, refused: Refusal | None) -> Sequence[ReplicaStatus]:
        """What each serves; they are told whether the alias could be resolved, and what it names that they refuse."""
        ...

    async def prepare(self, version: ModelVersion) -> Sequence[Refusal | None]:
        """None for each that has version ready to be taken."""
        ...

    async def commit(self, champion: ModelVersion, second: ModelVersion | None) -> None:
        """Every replica that has them ready serves these from its next request on."""
        ...


class Resolver(Protocol):
    """The registry, as far as it is needed here."""

    def resolve(self, uri: str) -> ModelVersion:
        """The version that uri means now. Raises RegistryError."""
        ...


@dataclass
class _Backoff:
    """The version that failed last, and when to try it again."""

    uri: str = ""
    refusal: Refusal | None = None
    pause_s: float = 0.0
    retry_at: float = field(default=0.0)  # time.monotonic()

    def failed(self, uri: str, refusal: Refusal, first_pause_s: float) -> None:
        self.pause_s = min(MAX_RETRY_S, 2 * self.pause_s) if uri == self.uri else first_pause_s
        self.uri, self.refusal, self.retry_at = uri, refusal, time.monotonic() + self.pause_s


class Rollout:
    """Keeps a fleet on the versions that the aliases name."""

    def __init__(self, fleet: Fleet, registry: Resolver, args: ServeArgs) -> None:
        self._fleet = fleet
        self._registry = registry
        self._args = args
        self._champion, self._second = _Backoff(), _Backoff()
        self._reached = True
        self.champion: ModelVersion | None = None  # what all replicas were last seen to serve

    async def follow(self) -> None:
        """Looks at the aliases every poll_s, for ever."""
        while True:
            await asyncio.sleep(self._args.poll_s)
            look = asyncio.ensure_future(self.poll())
            await asyncio.wait([look])
            if (error := look.exception()) is not None:  # whatever it was, the next look may succeed
                log.error("look failed model=%s reason=%s", self._args.model, error, exc_info=unknown_error(error))

    async def poll(self) -> None:
        """One look at the aliases, and the exchange if they name other versions than those that are served."""
        wanted, error = await self._resolve(self._args.model)
        self._tell_reached(error)
        refused = self._champion.refusal if wanted and self._champion.uri == wanted.uri else None
        refused = refused or self._second.refusal
        serving = await self._fleet.poll(resolved=wanted is not None, refused=refused)
        if serving and self.champion is None:
            self.champion = serving[0].champion
        if wanted is None or not serving:
            return
        if any(one.champion.uri != wanted.uri for one in serving):
            if not await self._take(self._champion, wanted, None, before=serving[0].champion):
                await self._look_at_second(serving[0].champion, serving)
                return
            serving = [ReplicaStatus(wanted, None)]
        self._champion, self.champion = _Backoff(), wanted
        await self._look_at_second(wanted, serving)

    async def _look_at_second(self, champion: ModelVersion, serving: Sequence[ReplicaStatus]) -> None:
        """The model of shadow and canary. Trouble with it never touches the champion."""
        alias = second_alias(self._args)
        if alias is None:
            return
        second, error = await self._resolve(f"models:/{champion.name}@{alias}")
        if isinstance(error, RegistryUnavailable):
            return
        if second is not None and second.uri == champion.uri:
            second = None  # it was promoted: there is nothing to compare
        wanted = second.uri if second else None
        if self._second.uri != wanted:
            self._second = _Backoff()
        if any((one.second.uri if one.second else None) != wanted for one in serving):
            if second is None:
                await self._fleet.commit(champion, None)
            else:
                await self._take(self._second, second, champion, before=None)

    async def _take(
        self, attempt: _Backoff, version: ModelVersion, champion: ModelVersion | None, *, before: ModelVersion | None
    ) -> bool:
        """Whether all replicas serve version now: as the champion, or as the second beside the champion given."""
        if attempt.uri == version.uri and time.monotonic() < attempt.retry_at:
            return False
        started = time.monotonic()
        answers = await self._fleet.prepare(version)
        refusals = [refusal for refusal in answers if refusal is not None]
        if not answers:  # no replica is there any more
            return False
        if refusals:
            attempt.failed(version.uri, refusals[0], self._args.poll_s)
            log.error(
                "model refused version=%s replicas=%d retry_in_s=%.0f reason=%s",
                version.version, len(refusals), attempt.pause_s, refusals[0].reason,
            )  # fmt: skip
            return False
        await (self._fleet.commit(champion, version) if champion else self._fleet.commit(version, None))
        attempt.uri, attempt.refusal, attempt.pause_s = "", None, 0.0
        role = "second" if champion else "champion"
        log.info(
            "model exchanged role=%s version=%s before=%s seconds=%.1f",
            role, version.version, before.version if before else None, time.monotonic() - started,
        )  # fmt: skip
        return True

    async def _resolve(self, uri: str) -> tuple[ModelVersion | None, BaseException | None]:
        """What uri means, or why that is not known. MLflow's client tries a server that has died for two minutes."""
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                return await result_or_error(self._registry.resolve, uri)
        except TimeoutError:
            return None, RegistryUnavailable(f"no answer within {RESOLVE_TIMEOUT_S:g} s about {uri}")

    def _tell_reached(self, error: BaseException | None) -> None:
        """Says once that the registry is lost, and once that it is back."""
        if error is not None and self._reached:
            log.error("alias not resolved model=%s reason=%s", self._args.model, error, exc_info=unknown_error(error))
        if error is None and not self._reached:
            log.info("alias resolved again model=%s", self._args.model)
        self._reached = error is None


def second_alias(args: ServeArgs) -> str | None:
    """The alias of the model that is held beside the champion; None where nothing needs one."""
    if args.canary.fraction:
        return args.canary.alias
    return args.shadow.alias if args.shadow.fraction else None


async def result_or_error(
    function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> tuple[R | None, BaseException | None]:
    """What function returned in a thread, or what it raised: whatever that is, the old model has to serve on."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    await asyncio.wait([work])
    error = work.exception()
    return (work.result(), None) if error is None else (None, error)


def to_refusal(version: ModelVersion, error: BaseException) -> Refusal:
    """The refusal that an error is."""
    return Refusal(str(version.version), type(error).__name__, str(error))


def unknown_error(error: BaseException | None) -> BaseException | None:
    """The error if it is not one of ours, so that its traceback is logged."""
    return None if isinstance(error, RayAppError | OSError) else error
