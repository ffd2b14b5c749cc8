"""MLflow runs: open, resume, log, close. An outage delays metrics; it stops nothing.

Every call names its tracking URI: MLflow's global one is never read or set, nor is its environment. MLflow is imported
where it is used, because that takes seconds.
"""

from __future__ import annotations

import logging
import posixpath
import re
import shlex
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import requests
from filelock import FileLock

from rayapp.errors import RegistryError, RegistryUnavailable
from rayapp.proxies import NO_PROXY_ADVICE, is_loopback, proxy_of, through
from rayapp.registry import moved
from rayapp.registry.spool import Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "KILLED", "FAILED"]
ANSWER_TIMEOUT_S = 3.0  # for a server to say that it is there
TABLES_TIMEOUT_S = 60.0  # for another process to make the tables of a new database, which takes 3 s
MAX_PARAM_CHARS, MAX_TAG_CHARS = 6000, 8000  # mlflow.utils.validation, 3.17
MAX_METRICS = 1000  # in one log_batch
MAX_PAST_RUNS = 20
# What to do about a database that SQLAlchemy knows and this environment has no driver for.
DRIVERS = {
    "postgresql": ": pip install psycopg2-binary, and write postgresql+psycopg2://...",
    "mysql": ": pip install PyMySQL, and write mysql+pymysql://...",
}
SEND_EVERY_S, LONGEST_WAIT_S, CLOSING_WAIT_S = 2.0, 30.0, 0.5


class PastRun(NamedTuple):
    """A run that has finished: the last value of each metric, and the tags."""

    run_id: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


@contextmanager
def mlflow_client(tracking_uri: str) -> Iterator[MlflowClient]:
    """A client for one block. Whatever MLflow raises in the block becomes a RegistryUnavailable, and so does silence.

    MLflow itself retries a dead server for minutes, and only environment variables say otherwise: so a server is asked
    for a sign of life first.
    """
    try:
        _require_answer(tracking_uri)
        yield _client(tracking_uri)
    except _outer_errors() as error:
        text = " ".join(str(error).split())[:400]
        raise RegistryUnavailable(f"MLflow at {_without_password(tracking_uri)} failed: {text}") from error
    except ImportError as error:
        raise RegistryError(
            f"MLflow at {_without_password(tracking_uri)} needs the Python module '{error.name}', which is not"
            f" installed{DRIVERS.get(tracking_uri.partition(':')[0], '')}"
        ) from error


class Tracker:
    """Writes runs. artifacts is the folder for what experiments in an sqlite database log; a server has its own."""

    def __init__(self, tracking_uri: str, artifacts: Path | None = None) -> None:
        self._uri = tracking_uri
        local = artifacts is not None and tracking_uri.startswith("sqlite")
        self._artifact_location = artifacts.absolute().as_uri() if artifacts and local else None

    def open_run(self, experiment: str, run_name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """The id of a new run of experiment, which is made if need be. Raises RegistryError."""
        from mlflow.entities import Param

        with mlflow_client(self._uri) as client:
            cut_tags = {name: value[:MAX_TAG_CHARS] for name, value in tags.items()}
            run = client.create_run(self._experiment_id(client, experiment), run_name=run_name, tags=cut_tags)
            run_id: str = run.info.run_id
            # the client splits them into requests of 100
            client.log_batch(run_id, params=[Param(name, value[:MAX_PARAM_CHARS]) for name, value in params.items()])
        return run_id

    def resume_run(self, run_id: str) -> None:
        """Mark a run as running again."""
        with mlflow_client(self._uri) as client:
            client.update_run(run_id, status="RUNNING")

    def close_run(self, run_id: str, status: Status, tags: Mapping[str, str] | None = None) -> None:
        """Mark a run as ended. tags: that it gets before, beside those it has."""
        with mlflow_client(self._uri) as client:
            if tags:
                client.log_batch(run_id, tags=_tags(tags))
            client.set_terminated(run_id, status)

    def delete_run(self, run_id: str) -> None:
        """Move a run to MLflow's trash."""
        with mlflow_client(self._uri) as client:
            client.delete_run(run_id)

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run; others stay."""
        with mlflow_client(self._uri) as client:
            client.log_batch(run_id, tags=_tags(tags))

    def child_run(self, parent_id: str, trial_id: str) -> str | None:
        """The run of a trial of the sweep whose own run is parent_id; None where there is none yet."""
        with mlflow_client(self._uri) as client:
            experiment_id = client.get_run(parent_id).info.experiment_id
            mine = f"tags.`mlflow.parentRunId` = '{parent_id}' AND tags.trial_id = {_quoted(trial_id)}"
            found = client.search_runs([experiment_id], mine, max_results=1)
        return str(found[0].info.run_id) if found else None

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics at a step."""
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        with mlflow_client(self._uri) as client:
            client.log_batch(run_id, [Metric(name, value, now_ms, step) for name, value in metrics.items()])

    def log_spooled(self, run_id: str, spool: Spool) -> None:
        """Send what waits in the spool."""
        while _send_batch(self._uri, run_id, spool):
            pass

    def past_runs(self, tags: Mapping[str, str]) -> list[PastRun]:
        """The newest finished runs of all experiments that carry these tags, newest first, at most MAX_PAST_RUNS.

        A database that is not there yet is not made. Raises RegistryUnavailable.
        """
        database = _database(self._uri)
        if database and not database.exists():
            return []
        conditions = ["attributes.status = 'FINISHED'"]
        conditions += [f'tags."{name}" = {_quoted(value)}' for name, value in tags.items()]
        with mlflow_client(self._uri) as client:
            runs = client.search_runs(
                [experiment.experiment_id for experiment in client.search_experiments()],
                " AND ".join(conditions),
                max_results=MAX_PAST_RUNS,
                order_by=["attributes.start_time DESC"],
            )
        return [PastRun(run.info.run_id, dict(run.data.metrics), dict(run.data.tags)) for run in runs]

    def log_artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Upload one file to a folder of the run's artifacts."""
        with mlflow_client(self._uri) as client:
            client.log_artifact(run_id, str(path), folder or None)

    def log_artifacts(self, run_id: str, path: Path, folder: str = "") -> None:
        """Upload what lies in path to a folder of the run's artifacts."""
        with mlflow_client(self._uri) as client:
            client.log_artifacts(run_id, str(path), folder or None)

    def log_table(self, run_id: str, table: Mapping[str, Sequence[object]], file: str) -> None:
        """Write columns as an MLflow table (.json) to the run's artifacts, in place of an earlier one of that name."""
        with mlflow_client(self._uri) as client:
            if file in [f.path for f in client.list_artifacts(run_id, posixpath.dirname(file))]:
                # log_table would append to it
                rows = list(zip(*table.values(), strict=True))
                client.log_dict(run_id, {"columns": list(table), "data": rows}, file)
            else:
                client.log_table(run_id, dict(table), file)

    def _experiment_id(self, client: MlflowClient, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(client.create_experiment(name, artifact_location=self._artifact_location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another process was faster
                    raise
            experiment = client.get_experiment_by_name(name)
            assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            raise RegistryError(
                f"experiment '{name}' is deleted; restore it with: {_as_typed(self._uri)}mlflow experiments restore -x"
                f" {experiment.experiment_id}, or choose another with --tracking.experiment NAME"
            )
        return str(experiment.experiment_id)


class MetricLog:
    """Sends the metrics of a run to MLflow through a file, the spool, so that an outage cannot hold up the caller.

    One thread sends what is in the spool every few seconds, and less often while MLflow does not answer. What is left
    at the end, the next MetricLog on the same spool sends. A batch whose answer was lost is sent again: MLflow's
    databases keep a value with equal name, step and time once.
    """

    def __init__(self, tracking_uri: str, run_id: str, spool: Path) -> None:
        self._uri, self._run_id = tracking_uri, run_id
        self._spool = Spool(spool)
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._deliver, daemon=True, name=f"metrics-{run_id[:8]}")
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step. Returns at once and does not raise, whatever MLflow and the disk do."""
        self._spool.append(metrics, step)

    def close(self, timeout_s: float) -> int:
        """The number of metrics that MLflow has not got after at most timeout_s; 0 normally."""
        self._closing.set()
        self._thread.join(timeout_s)
        self._abandoned.set()
        self._spool.close()
        num_waiting = self._spool.num_waiting()
        if num_waiting:
            log.warning(
                "%d metrics of run %s could not be sent to MLflow; they wait in %s",
                num_waiting,
                self._run_id,
                self._spool.path,
            )
        return num_waiting + self._spool.num_lost

    def _deliver(self) -> None:
        wait_s, failing = SEND_EVERY_S, False
        while True:
            self._closing.wait(wait_s)
            last = self._closing.is_set()  # read before sending: nothing is logged after it was set
            try:
                while _send_batch(self._uri, self._run_id, self._spool):
                    pass
            except (RegistryError, OSError) as error:
                if not failing:
                    log.warning("metrics of run %s wait in %s: %s", self._run_id, self._spool.path, error)
                failing, wait_s = True, min(2 * wait_s, LONGEST_WAIT_S)
                if last and self._abandoned.wait(CLOSING_WAIT_S):
                    return
                continue
            if failing:
                log.info("MLflow answers again: the metrics of run %s were sent", self._run_id)
            failing, wait_s = False, SEND_EVERY_S
            if last:
                return


def _send_batch(tracking_uri: str, run_id: str, spool: Spool) -> bool:
    """Whether anything was there to send."""
    rows, end = spool.next_batch(MAX_METRICS)
    if not rows:
        return False
    from mlflow.entities import Metric

    with mlflow_client(tracking_uri) as client:
        client.log_batch(run_id, metrics=[Metric(r.name, r.value, r.time_ms, r.step) for r in rows])
    spool.mark_sent(end)
    return True


def _tags(tags: Mapping[str, str]) -> list[RunTag]:
    from mlflow.entities import RunTag

    return [RunTag(name, value[:MAX_TAG_CHARS]) for name, value in tags.items()]


def _client(tracking_uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    path = _database(tracking_uri)
    if path is None:
        return MlflowClient(tracking_uri, registry_uri=tracking_uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=TABLES_TIMEOUT_S):  # two processes that make the tables at once both fail
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")  # MLflow tries for minutes to read a file that is no database
            moved.follow(connection, path)
        # tells of every table it makes, and prints the stack of what it raises
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        return MlflowClient(tracking_uri, registry_uri=tracking_uri)


def _is_server(tracking_uri: str) -> bool:
    return tracking_uri.startswith(("http://", "https://"))


def _database(tracking_uri: str) -> Path | None:
    """The file of an sqlite database; None for other stores."""
    if not tracking_uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    name = make_url(tracking_uri).database
    return Path(name) if name else None


def _as_typed(tracking_uri: str) -> str:
    """What stands before a command of MLflow's own, which knows nothing of RAYAPP_HOME.

    Empty where the URI has a password, which is not printed: that one comes from the environment, where mlflow sees it.
    """
    has_password = _without_password(tracking_uri) != tracking_uri
    return "" if has_password else f"MLFLOW_TRACKING_URI={shlex.quote(tracking_uri)} "


def _quoted(value: str) -> str:
    """A value in MLflow's search language, which has no escape for a quote."""
    quote = '"' if "'" in value else "'"
    return f"{quote}{value}{quote}"


def _require_answer(tracking_uri: str) -> None:
    """Nothing, if a server answers at tracking_uri in a moment; databases are let pass. Raises RegistryUnavailable."""
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", tracking_uri):
        raise RegistryError(f"MLFLOW_TRACKING_URI={tracking_uri} lacks its scheme; write http://{tracking_uri}")
    if not _is_server(tracking_uri):
        return
    if is_loopback(tracking_uri) and (proxy := proxy_of(tracking_uri)):  # MLflow's client cannot be told otherwise
        raise RegistryUnavailable(
            f"MLflow at {_without_password(tracking_uri)} would be asked through the proxy {proxy}, which has another"
            f" loopback; {NO_PROXY_ADVICE}"
        )
    try:
        status = requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=ANSWER_TIMEOUT_S).status_code
        reason = f"status {status}" if status >= 500 else ""
    except requests.exceptions.SSLError:
        return  # it is there; whom to trust is said by MLflow's own settings
    except requests.exceptions.RequestException as error:
        timeout = isinstance(error, requests.exceptions.Timeout)
        reason = f"no answer in {ANSWER_TIMEOUT_S:g} s" if timeout else _root_cause(error)
    if reason:
        raise RegistryUnavailable(
            f"MLflow at {_without_password(tracking_uri)} does not answer{through(tracking_uri)} ({reason});"
            " start it, or set MLFLOW_TRACKING_URI to one that runs (unset: a database in RAYAPP_HOME)"
        )


def _outer_errors() -> tuple[type[Exception], ...]:
    """What MLflow and the libraries under it raise. Looked up when something was raised: only then is it imported."""
    found: list[type[Exception]] = [OSError, sqlite3.Error]
    for module, name in (
        ("mlflow.exceptions", "MlflowException"),
        ("sqlalchemy.exc", "SQLAlchemyError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("boto3.exceptions", "Boto3Error"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _root_cause(error: BaseException) -> str:
    """The innermost reason: "Connection refused" of the four errors around it."""
    text = str(error)
    found = re.search(r"(?:\[Errno [-\d]+\] )([^'\")]+)", text)
    return found.group(1) if found else text[-200:]


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)
