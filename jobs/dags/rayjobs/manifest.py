"""RayJobs as data: made from a template, named after the try of a task, and what their status says."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import yaml
from airflow.sdk.exceptions import AirflowFailException

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
NAMESPACE = "rayapp"
TEMPLATES = "rayjob-templates"  # the ConfigMap
TASK_LABEL = "rayapp.io/airflow-task"

# jobDeploymentStatus after which KubeRay does nothing more. Retrying and Suspended are not among them, whatever
# jobStatus says then: KubeRay starts the job again.
ENDED = {"Complete", "Failed", "ValidationFailed"}
# How Ray begins the message of a job whose command failed (ray 2.60.0, job_supervisor.py).
EXIT_CODE = re.compile(r"Job entrypoint command failed with exit code (\d+)")


class TemplateError(AirflowFailException):
    """A template cannot be used; trying again would not change that."""


@dataclass(frozen=True)
class Try:
    """A try of a task of a DAG run."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int | None
    number: int
    instance: str  # Airflow's id of this try; another one where a deleted run is made again under its old name

    @property
    def task_label(self) -> str:
        """The same for all tries of a task in a run, and for no other task."""
        return _digest(self.dag_id, self.run_id, self.task_id, self.map_index)

    def name(self, job: str) -> str:
        """The same whenever this try is executed again, so that Kubernetes refuses a second RayJob."""
        return f"{job}-{_digest(self.task_label, self.instance)}-{self.number}"

    def annotations(self) -> dict[str, str]:
        """What a person wants to know who finds the RayJob."""
        names = {"dag": self.dag_id, "run": self.run_id, "task": self.task_id, "try": str(self.number)}
        return {f"rayapp.io/airflow-{key}": value for key, value in names.items()}


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:10]


def from_template(
    templates: dict[str, str], key: str, *, job: str, of: Try, timeout: timedelta, entrypoint: str | None = None
) -> dict[str, Any]:
    """The RayJob of a try. entrypoint goes over the template's, and then KubeRay runs it once. Raises TemplateError.

    KubeRay stops the job after timeout by itself, so that GPUs are given back even where Airflow is down.
    """
    if key not in templates:
        raise TemplateError(f"{_where(key)} is missing; the ConfigMap has: {', '.join(sorted(templates)) or 'nothing'}")
    try:
        rayjob = yaml.safe_load(templates[key])
    except yaml.YAMLError as error:
        raise TemplateError(f"{_where(key)} is not YAML: {error}") from error
    _check(rayjob, key)
    metadata, spec = rayjob["metadata"], rayjob["spec"]
    metadata.pop("generateName", None)
    metadata["name"] = of.name(job)
    metadata["labels"] = {**metadata.get("labels", {}), TASK_LABEL: of.task_label}
    metadata["annotations"] = {**metadata.get("annotations", {}), **of.annotations()}
    if entrypoint:
        spec["entrypoint"], spec["backoffLimit"] = entrypoint, 0  # a gate that says no says it again
    seconds = int(timeout.total_seconds())
    spec["activeDeadlineSeconds"] = min(spec.get("activeDeadlineSeconds", seconds), seconds)
    return rayjob  # type: ignore[no-any-return]  # yaml gives Any


def _where(key: str) -> str:
    return f"ConfigMap {NAMESPACE}/{TEMPLATES}: {key}"


def _check(rayjob: object, key: str) -> None:
    wanted = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "RayJob", "metadata": dict, "spec": dict}
    if not isinstance(rayjob, dict):
        raise TemplateError(f"{_where(key)} is not an object")
    for field, value in wanted.items():
        given = rayjob.get(field)
        if not (isinstance(given, value) if isinstance(value, type) else given == value):
            raise TemplateError(f"{_where(key)}: {field} is {given!r}, not {value!r}")
    if not isinstance(rayjob["spec"].get("entrypoint"), str):
        raise TemplateError(f"{_where(key)}: spec.entrypoint is missing")


def phase(rayjob: dict[str, Any]) -> str:
    """Where a RayJob stands, in two words: that of KubeRay and that of Ray."""
    status = rayjob.get("status", {})
    return f"{status.get('jobDeploymentStatus') or 'New'} {status.get('jobStatus') or ''}".strip()


def is_unfinished(rayjob: dict[str, Any]) -> bool:
    """It runs, or will; one that is being deleted does not."""
    is_deleted = "deletionTimestamp" in rayjob["metadata"]
    return not is_deleted and rayjob.get("status", {}).get("jobDeploymentStatus") not in ENDED


def ending(rayjob: dict[str, Any]) -> dict[str, Any] | None:
    """How a RayJob ended, as the event of a trigger; None while it has not."""
    status = rayjob.get("status", {})
    if status.get("jobDeploymentStatus") not in ENDED:
        return None
    name, succeeded = rayjob["metadata"]["name"], phase(rayjob) == "Complete SUCCEEDED"
    message = status.get("message") or "no message"
    found = EXIT_CODE.match(message)
    said = f"{phase(rayjob)}, {status.get('reason') or 'no reason given'}: {message}"
    return {
        "name": name,
        "end": "succeeded" if succeeded else "failed",
        "exit_code": int(found[1]) if found else None,
        "message": phase(rayjob) if succeeded else said,
    }
