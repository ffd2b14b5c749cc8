"""The Ray Serve application: build(args) for `serve deploy`, start() and stop() for `rayapp serve` and the demo.

Wiring only. One deployment is mounted at /, so that every answer but those of Serve's proxy itself is the contract's.
"""

# No `from __future__ import annotations` here: Serve makes ServeArgs of a file's args only where build's annotation is
# the class itself; of the word "ServeArgs" it makes nothing, silently, and build gets a dict.

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from prometheus_client.core import Metric
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.types import ASGIApp

from rayapp.config.commands import ServeSettings
from rayapp.config.env import Home, ray_address
from rayapp.config.serve import ServeArgs
from rayapp.errors import BundleError, ConfigError, RayAppError, RegistryError, RegistryUnavailable
from rayapp.registry.models import Registry
from rayapp.registry.uris import ModelVersion
from rayapp.runtime.resources import check_fits
from rayapp.runtime.short_paths import short_enough
from rayapp.runtime.start import ray_cluster
from rayapp.serve import request_log
from rayapp.serve.asgi import build_app
from rayapp.serve.auth import ApiKeys
from rayapp.serve.coordinator import DEPLOYMENT, ENVIRONMENT, REPLICAS, Coordinator, RayFleet, champion_of
from rayapp.serve.follower import Follower, LastServed, first_served, once_possible
from rayapp.serve.haproxy import controller_env, private_haproxy, replica_env
from rayapp.serve.haproxy_wrapper import LOOPBACK
from rayapp.serve.logs import Logs, log_to_stderr
from rayapp.serve.metrics import Metrics
from rayapp.serve.own_cluster import OwnCluster
from rayapp.serve.replica import LoadedModel, Replica
from rayapp.serve.rollout import Refusal, ReplicaStatus
from rayapp.storage import absolute_uri, is_remote
from rayapp.vision.predictor import resolve_device

APPLICATION = "rayapp-serve"  # not the name in serve_configs/: on a shared cluster that one must not be replaced
log = logging.getLogger(__name__)
LONGEST_SOCKET = len("rayapp-12345678/metrics.sock.4194304.tmp")  # of HAProxy, which binds it under the longer name
SERVES_GRACE_S = 15.0  # Serve's own limit on a request is this much longer than ours, which has the contract's shape


class VisionClassifier:
    """One replica: its model is loaded when it is made, and exchanged when the rollout says so.

    A patient one that finds no keys, registry, storage, champion or sound model waits for them, and gets no requests.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: ServeArgs, home: Home, rollout: DeploymentHandle[Any], *, patient: bool
    ) -> None:
        log_to_stderr()
        registry, last = Registry(args.tracking_uri or home.tracking_uri), LastServed(home.bundles)

        async def model() -> LoadedModel:
            wanted = await champion_of(rollout)
            return await asyncio.to_thread(first_served, registry, wanted, last, home.bundles, args)

        if patient:
            await once_possible(partial(asyncio.to_thread, _check_outside, args), ConfigError)
        served = await (once_possible(model, RegistryError, BundleError, OSError) if patient else model())
        self._name = serve.get_replica_context().replica_id.unique_id
        self._args = args
        self._metrics = Metrics()
        self._replica = Replica(served, args, self._metrics)
        self._follower = Follower(self._replica, registry, home.bundles, args, self._metrics, last)
        self._logs = Logs(args, self._metrics, replica=self._name)
        self._fleet = RayFleet()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_app(
            self._replica,
            self._args,
            self._metrics,
            logs=self._logs,
            families=self._fleet.families,
            lifespan=self._life,
        )

    @contextlib.asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._replica.close()
        await asyncio.to_thread(self._logs.close)

    async def poll(self, *, resolved: bool, refused: Refusal | None) -> ReplicaStatus:
        """See Follower."""
        return self._follower.poll(resolved=resolved, refused=refused)

    async def prepare(self, version: ModelVersion) -> Refusal | None:
        """See Follower."""
        return await self._follower.prepare(version)

    async def commit(self, champion: ModelVersion, second: ModelVersion | None) -> None:
        """See Follower."""
        self._follower.commit(champion, second)

    async def families(self) -> tuple[str, list[Metric]]:
        """This replica's name and its metrics."""
        return self._name, self._metrics.families()


def build(args: ServeArgs) -> serve.Application:
    """The application that serve_configs/*.yaml name, with this machine's home; it waits for what it needs."""
    return application(args, Home.from_env(), patient=True)


def application(args: ServeArgs, home: Home, *, haproxy: bool = False, patient: bool = False) -> serve.Application:
    """The application with its state in home. Each replica reserves its threads' CPUs, and a GPU where it uses one.

    patient: a replica whose start fails for what may come right tries again, instead of failing the deployment.
    """
    if args.device == "auto":  # once, here: a replica that finds out for itself imports torch for that
        args = args.model_copy(update={"device": resolve_device("auto")})
    on_gpu = args.device == "cuda"
    rollout: serve.Deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": ENVIRONMENT}},
        max_ongoing_requests=1000,  # replicas that start
        graceful_shutdown_wait_loop_s=0.1,
    )(Coordinator)
    deployment: serve.Deployment = serve.deployment(
        name=REPLICAS,
        num_replicas=args.num_replicas,
        ray_actor_options={
            "num_cpus": args.num_threads,
            "num_gpus": 1 if on_gpu else 0,
            "runtime_env": {"env_vars": replica_env(haproxy=haproxy)},
        },
        # The replica's own queue must overflow first: its 503 has the contract's shape, Serve's has not.
        max_ongoing_requests=2 * args.max_queue,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=args.timeout_s + 10,  # what has begun may end
        max_constructor_retry_count=3,  # a bundle that cannot be loaded does not get better
    )(serve.ingress()(VisionClassifier))
    return deployment.bind(args, home, rollout.bind(args, home), patient=patient)


def serve_forever(settings: ServeSettings, home: Home) -> None:
    """Serve until Ctrl-C or SIGTERM, of this process or of all that it has started.

    Raises RegistryError, BundleError or ConfigError before Serve starts, and ClusterLost where Ray ends meanwhile.
    """
    args = _with_absolute_paths(settings.app.model_copy(update={"model": settings.model}))
    check(args, home, host=settings.host, port=settings.port)
    place = short_enough(Path(tempfile.gettempdir()), LONGEST_SOCKET)
    with tempfile.TemporaryDirectory(prefix="rayapp-", dir=place) as folder, ray_cluster(show_worker_logs=True):
        cluster = OwnCluster()
        # Ray's own handler prints a stack trace first
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            haproxy = private_haproxy(Path(folder), settings.host) if settings.haproxy else None
            version = start(args, home, host=settings.host, port=settings.port, haproxy=haproxy)
            at = f"[{settings.host}]" if ":" in settings.host else settings.host
            print(f"serving {_name(version)} at http://{at}:{settings.port} (Ctrl-C stops it)", flush=True)
            cluster.watch()
        except KeyboardInterrupt:
            print("stopping", flush=True)
        finally:
            cluster.finish(stop)


def _with_absolute_paths(args: ServeArgs) -> ServeArgs:
    """Replicas have working folders of their own."""
    keys, folder = args.api_keys, args.request_log.folder
    if folder is not None and not is_remote(folder):
        log = args.request_log.model_copy(update={"folder": absolute_uri(folder)})
        args = args.model_copy(update={"request_log": log})
    return args.model_copy(update={"api_keys": keys and keys.expanduser().absolute()})


def start(
    args: ServeArgs,
    home: Home,
    *,
    host: str = "127.0.0.1",
    port: int = 3000,
    haproxy: Mapping[str, str] | None = None,
) -> ModelVersion:
    """The version that answers at host:port when this returns. Ray has to be there; stop() ends it.

    HAProxy takes the requests where haproxy is given (what private_haproxy says), else Serve's own proxy does.
    Raises RegistryError or BundleError where there is no such model, ConfigError where port or CPUs are not free.
    """
    version = check(args, home, host=host, port=port)
    asked = f"app.num_replicas {args.num_replicas} of {args.num_threads} threads"
    instead = "replicas fit; lower app.num_replicas or app.num_threads"
    check_fits(asked, args.num_replicas, "CPU", args.num_threads, instead)  # Serve would wait for ever
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with_haproxy = haproxy is not None
    env = controller_env(haproxy=with_haproxy, timeout_s=args.timeout_s)
    # HAProxy alone has to be reached from elsewhere, and asks Serve's proxy and the replicas of its machine on loopback
    behind = LOOPBACK if with_haproxy and not ray_address() else host
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": behind, "port": port, "request_timeout_s": args.timeout_s + SERVES_GRACE_S},
        controller_options={"runtime_env": {"env_vars": env | dict(haproxy or {})}},
        logging_config=quiet,
    )
    try:
        serve.run(
            application(args, home, haproxy=with_haproxy), name=APPLICATION, route_prefix="/", logging_config=quiet
        )
    except (RuntimeError, RayServeException) as error:
        cause = str(error).strip().splitlines()[-1]  # above it stands the traceback of another process
        raise RayAppError(f"Serve could not start {_name(version)}: {cause}") from error
    return version


def stop() -> None:
    """Let the replicas answer what they have begun, and end them; Serve itself ends with its cluster."""
    if ray.is_initialized() and APPLICATION in serve.status().applications:
        serve.delete(APPLICATION)


def check(args: ServeArgs, home: Home, *, host: str, port: int) -> ModelVersion:
    """The version that args name, downloaded and verified: what can fail fails here, in seconds.

    Raises RegistryError, BundleError, or ConfigError where the port is in use, or the file of API keys or the folder of
    the request log is of no use. Where MLflow is away it is the version that this machine served last, if there is one.
    """
    if not ray_address():  # else Serve listens on the cluster's head
        _check_port(host, port)
    _check_outside(args)
    registry = Registry(args.tracking_uri or home.tracking_uri)
    try:
        version = registry.resolve(args.model)
        registry.download(version, home.bundles)
    except (RegistryUnavailable, BundleError) as error:
        last = LastServed(home.bundles).read(args.model)
        if last is None:
            raise
        version, _ = last
        log.warning("serving what was served last, %s: %s", version.uri, error)
    return version


def _check_outside(args: ServeArgs) -> None:
    """Raises ConfigError where the file of API keys or the folder of the request log is of no use."""
    if args.api_keys:
        ApiKeys(args.api_keys)
    if args.request_log.folder:
        request_log.check(args.request_log)


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            who = _listener(port) if error.errno == errno.EADDRINUSE else None
            stop_it = f"stop {who or 'what listens there'}, or choose another --port"
            raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}); {stop_it}") from error


def _listener(port: int) -> str | None:
    """Who listens on a port, as far as this user may know: a server of ours, or the process itself."""
    with contextlib.suppress(psutil.Error):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.pid and one.laddr and one.laddr.port == port:
                process = psutil.Process(one.pid)
                servers = [each for each in process.parents() if {"rayapp", "serve"} <= _words(each)]
                return f"rayapp serve (pid {servers[0].pid})" if servers else f"{process.name()} (pid {process.pid})"
    return None


def _words(process: psutil.Process) -> set[str]:
    return {Path(word).name for word in process.cmdline()}


def _name(version: ModelVersion) -> str:
    return f"{version.uri} ({version.alias})" if version.alias else version.uri
