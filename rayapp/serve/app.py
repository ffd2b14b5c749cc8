"""The Ray Serve application: build(args) for `serve deploy`, start() and stop() for `rayapp serve` and the demo.

Wiring only. One deployment is mounted at /, so that every answer but those of Serve's proxy itself is the contract's.
"""

# No `from __future__ import annotations` here: Serve makes ServeArgs of a file's args only where build's annotation is
# the class itself; of the word "ServeArgs" it makes nothing, silently, and build gets a dict.

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.applications import Starlette

from rayapp.cluster import ray_cluster
from rayapp.config import Home, ServeArgs, ServeSettings, ray_address
from rayapp.errors import ConfigError, RayAppError
from rayapp.registry.models import Registry
from rayapp.registry.names import ModelVersion
from rayapp.serve.contract import build_app
from rayapp.serve.keys import ApiKeys
from rayapp.serve.metrics import Metrics
from rayapp.serve.proxy import CONTROLLER_OPTIONS
from rayapp.serve.replica import Replica
from rayapp.serve.rollout import Rollout, prepare
from rayapp.vision.predictor import resolve_device

APPLICATION = "rayapp-serve"  # not the name in serve_configs/: on a shared cluster that one must not be replaced
SERVES_GRACE_S = 15.0  # Serve's own limit on a request is this much longer than ours, which has the contract's shape


class VisionClassifier:
    """One replica: its model is loaded when it is made, and followed while it lives."""

    def __init__(self, args: ServeArgs, home: Home) -> None:
        _log_to_stderr()
        registry = Registry(args.tracking_uri or home.tracking_uri)
        served = prepare(registry, registry.resolve(args.model), home.bundles, args)
        self._args = args
        self._metrics = Metrics()
        self._replica = Replica(served, args)
        self._rollout = Rollout(self._replica, registry, home.bundles, args, self._metrics)

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_app(self._replica, self._args, self._metrics, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(self._rollout.follow())
        yield
        following.cancel()
        self._replica.close()


def build(args: ServeArgs) -> serve.Application:
    """The application that serve_configs/*.yaml name, with this machine's home."""
    return application(args, Home.from_env())


def application(args: ServeArgs, home: Home) -> serve.Application:
    """The application with its state in home. Each replica reserves its threads' CPUs, and a GPU where it uses one."""
    on_gpu = args.device == "cuda" or (args.device == "auto" and resolve_device("auto") == "cuda")
    deployment: serve.Deployment = serve.deployment(
        name="VisionClassifier",
        num_replicas=args.num_replicas,
        ray_actor_options={"num_cpus": args.num_threads, "num_gpus": 1 if on_gpu else 0},
        # The replica's own queue must overflow first: its 503 has the contract's shape, Serve's has not.
        max_ongoing_requests=2 * args.max_queue,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=3,  # a bundle that cannot be loaded does not get better
    )(serve.ingress()(VisionClassifier))
    return deployment.bind(args, home)


# --- a server on this machine -----------------------------------------------------------------------------------------


def serve_forever(settings: ServeSettings, home: Home) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises RegistryError, BundleError or ConfigError before Serve starts."""
    keys = settings.app.api_keys and settings.app.api_keys.expanduser().absolute()  # replicas have folders of their own
    args = settings.app.model_copy(update={"model": settings.model, "api_keys": keys})
    check(args, home, host=settings.host, port=settings.port)
    with ray_cluster(show_worker_logs=True):
        # Ray's own handler prints a stack trace first
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            version = start(args, home, host=settings.host, port=settings.port)
            print(f"serving {_name(version)} at http://{settings.host}:{settings.port} (Ctrl-C stops it)", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopping", flush=True)
        finally:
            stop()


def start(args: ServeArgs, home: Home, *, host: str = "127.0.0.1", port: int = 3000) -> ModelVersion:
    """The version that answers at host:port when this returns. Ray has to be there; stop() ends it.

    Raises RegistryError or BundleError where there is no such model, ConfigError where port or CPUs are not free.
    """
    version = check(args, home, host=host, port=port)
    _check_cpus(args)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port, "request_timeout_s": args.timeout_s + SERVES_GRACE_S},
        controller_options=CONTROLLER_OPTIONS,
        logging_config=quiet,
    )
    try:
        serve.run(application(args, home), name=APPLICATION, route_prefix="/", logging_config=quiet)
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

    Raises RegistryError, BundleError, or ConfigError where the port is in use or the file of API keys is of no use.
    """
    if not ray_address():  # else Serve listens on the cluster's head
        _check_port(host, port)
    if args.api_keys:
        ApiKeys(args.api_keys)
    registry = Registry(args.tracking_uri or home.tracking_uri)
    version = registry.resolve(args.model)
    registry.download(version, home.bundles)
    return version


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}); stop what listens there, or choose another --port"
            ) from error


def _check_cpus(args: ServeArgs) -> None:
    """Serve would wait for ever for CPUs that the cluster does not have."""
    needed, there = args.num_replicas * args.num_threads, int(ray.cluster_resources().get("CPU", 0))
    if needed > there:
        raise ConfigError(
            f"{args.num_replicas} replicas of {args.num_threads} threads need {needed} CPUs, the cluster has {there};"
            " lower app.num_replicas or app.num_threads"
        )


def _log_to_stderr() -> None:
    """Our log lines go where Ray collects those of its workers: a replica is a process of its own, so this is main."""
    logger = logging.getLogger("rayapp")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a client's broken form is no event of ours


def _name(version: ModelVersion) -> str:
    return f"{version.uri} ({version.alias})" if version.alias else version.uri
