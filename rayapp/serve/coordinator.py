"""Coordinator: the rollout as a deployment of its own, and the fleet as Ray Serve reaches it.

It loads no model and imports no torch. It may die at any time: replicas serve on, and Serve starts another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client.core import Metric
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from rayapp.config.env import Home
from rayapp.config.serve import ServeArgs
from rayapp.registry.tracking import mlflow_client
from rayapp.registry.uris import ModelVersion, parse, resolve
from rayapp.serve.logs import log_to_stderr
from rayapp.serve.rollout import Refusal, ReplicaStatus, Rollout, result_or_error

DEPLOYMENT, REPLICAS = "Rollout", "VisionClassifier"  # names of the deployments
# MLflow's client tries a server that has died for two minutes, and reads only from here that it should not.
ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
ASK_TIMEOUT_S, PREPARE_TIMEOUT_S = 10.0, 600.0  # a bundle may come from far away

log = logging.getLogger(__name__)


class RayFleet:
    """All replicas of the application that this process belongs to."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle(
            REPLICAS, serve.get_replica_context().app_name
        )

    async def poll(self, *, resolved: bool, refused: Refusal | None) -> Sequence[ReplicaStatus]:
        """See Fleet."""
        return await self._ask("poll", resolved=resolved, refused=refused)

    async def prepare(self, version: ModelVersion) -> Sequence[Refusal | None]:
        """See Fleet."""
        return await self._ask("prepare", version, timeout_s=PREPARE_TIMEOUT_S)

    async def commit(self, champion: ModelVersion, second: ModelVersion | None) -> None:
        """See Fleet."""
        await self._ask("commit", champion, second)

    async def families(self) -> Mapping[str, Sequence[Metric]]:
        """The metrics of each replica, by its name."""
        return dict(await self._ask("families", timeout_s=ASK_TIMEOUT_S))

    async def _ask(self, method: str, *args: Any, timeout_s: float = ASK_TIMEOUT_S, **kwargs: Any) -> list[Any]:
        """The answers of all replicas that live."""
        try:
            answers = await self._handle.broadcast(method, *args, **kwargs).results_async(
                timeout_s=timeout_s, return_exceptions=True
            )
        except DeploymentUnavailableError:  # none has started yet
            return []
        for error in answers:
            if isinstance(error, Exception) and not isinstance(error, RayActorError):
                raise error
        return [answer for answer in answers if not isinstance(answer, RayActorError)]


async def champion_of(rollout: DeploymentHandle[Any]) -> ModelVersion | None:
    """What the other replicas serve, as far as their coordinator knows it; None where it is not there itself."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            version: ModelVersion | None = await rollout.champion.remote()
            return version
    except (RayActorError, RayServeException, TimeoutError) as error:
        log.warning("the rollout does not say what is served: %s", error)
        return None


class Coordinator:
    """One per application."""

    async def __init__(self, args: ServeArgs, home: Home) -> None:  # type: ignore[misc]  # Serve awaits it
        log_to_stderr()
        self._resolver = _Resolver(args.tracking_uri or home.tracking_uri)
        self._rollout = Rollout(RayFleet(), self._resolver, args)
        self._following = asyncio.create_task(self._follow(args.model))

    async def _follow(self, model: str) -> None:
        await result_or_error(
            self._resolver.resolve, model
        )  # MLflow is imported for it: that takes longer than a look may
        await self._rollout.follow()

    def __del__(self) -> None:
        """Serve calls it before it ends the process."""
        self._following.cancel()

    async def champion(self) -> ModelVersion | None:
        """What the replicas serve, for one that starts; None where that is not known."""
        return self._rollout.champion


class _Resolver:
    """The registry without what it needs torch for."""

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri

    def resolve(self, uri: str) -> ModelVersion:
        """The version that uri means now. Raises RegistryError."""
        with mlflow_client(self._uri) as client:
            return resolve(client, parse(uri))
