"""A task that creates a RayJob from a template and waits for it without holding a worker."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from rayjobs.manifest import GROUP, NAMESPACE, PLURAL, TASK_LABEL, TEMPLATES, VERSION, Try, from_template, is_unfinished
from rayjobs.trigger import NOT_FOUND, RayJobTrigger

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

ALREADY_THERE = 409
# Exit codes of the jobs (rayapp.errors).
BAD_SETTINGS, REFUSED_BY_THE_GATE = 2, 3
# The trigger gives up by itself; this is for a trigger that hangs.
MARGIN = timedelta(minutes=10)


class RayJobFailed(AirflowException):
    """The RayJob ended without success; the message is KubeRay's."""


class RayJobOperator(BaseOperator):
    """Succeeds with its RayJob. Is skipped where the gate refused a promotion; that is an answer, not a failure.

    A try first looks for a RayJob that an earlier try has left running, and waits for that one: two never run at once.
    job names the RayJob and its template (JOB.yaml), unless template names another. entrypoint goes over the
    template's. timeout: after it the RayJob is deleted, and the task fails for good.
    """

    template_fields = ("entrypoint", "poll_interval_s")

    def __init__(
        self,
        *,
        job: str,
        timeout: timedelta,
        template: str | None = None,
        entrypoint: str | None = None,
        poll_interval_s: str | float = "{{ params.poll_interval_s }}",
        conn_id: str = "kubernetes_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.timeout = timeout
        self.template = template or f"{job}.yaml"
        self.entrypoint = entrypoint
        self.poll_interval_s = poll_interval_s
        self.conn_id = conn_id
        self.rayjob: str | None = None

    def execute(self, context: Context) -> NoReturn:
        ti = context["ti"]
        of = Try(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number, str(ti.id))
        self.rayjob = self._left_running(of) or self._create(of)
        trigger = RayJobTrigger(
            name=self.rayjob,
            conn_id=self.conn_id,
            give_up_at=time.time() + self.timeout.total_seconds(),
            poll_interval_s=float(self.poll_interval_s),
        )
        self.defer(trigger=trigger, method_name="execute_complete", timeout=self.timeout + MARGIN)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """The name of the RayJob that succeeded."""
        name, end, exit_code = event["name"], event["end"], event["exit_code"]
        said = f"RayJob {NAMESPACE}/{name}: {event['message']}"
        if end == "succeeded":
            self.log.info(said)
            return str(name)
        if exit_code == REFUSED_BY_THE_GATE:
            raise AirflowSkipException(said)
        if end == "timeout":
            self._delete(name)
        if end == "timeout" or exit_code == BAD_SETTINGS:
            raise AirflowFailException(said)
        raise RayJobFailed(said)

    def on_kill(self) -> None:
        """The worker is stopped before the task waits: nobody would wait for the RayJob."""
        if self.rayjob:
            self._delete(self.rayjob)

    def _left_running(self, of: Try) -> str | None:
        """The RayJob of an earlier try that still runs: its worker or its triggerer was lost, not the job."""
        found = self._rayjobs.list_namespaced_custom_object(**_PLACE, label_selector=f"{TASK_LABEL}={of.task_label}")
        names = [rayjob["metadata"]["name"] for rayjob in found["items"] if is_unfinished(rayjob)]
        if not names:
            return None
        self.log.info("RayJob %s/%s of an earlier try still runs: waiting for it", NAMESPACE, names[0])
        return str(names[0])

    def _create(self, of: Try) -> str:
        from kubernetes.client import ApiException

        templates = self._hook.core_v1_client.read_namespaced_config_map(TEMPLATES, NAMESPACE).data or {}
        rayjob = from_template(
            templates, self.template, job=self.job, of=of, timeout=self.timeout, entrypoint=self.entrypoint
        )
        name = str(rayjob["metadata"]["name"])
        try:
            self._rayjobs.create_namespaced_custom_object(**_PLACE, body=rayjob)
            self.log.info("RayJob %s/%s is created: %s", NAMESPACE, name, rayjob["spec"]["entrypoint"])
        except ApiException as error:
            if error.status != ALREADY_THERE:
                raise AirflowException(f"RayJob {NAMESPACE}/{name} is not created: {error.body}") from error
            self.log.info("RayJob %s/%s is there already: waiting for it", NAMESPACE, name)
        return name

    def _delete(self, name: str) -> None:
        from kubernetes.client import ApiException

        try:
            self._rayjobs.delete_namespaced_custom_object(**_PLACE, name=name)
            self.log.info("RayJob %s/%s is deleted", NAMESPACE, name)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise

    @cached_property
    def _hook(self) -> KubernetesHook:
        # Imported here: the provider takes a second, and each parsing of a DAG would pay for it.
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

        return KubernetesHook(kubernetes_conn_id=self.conn_id)

    @property
    def _rayjobs(self) -> Any:
        return self._hook.custom_object_client


_PLACE = {"group": GROUP, "version": VERSION, "namespace": NAMESPACE, "plural": PLURAL}
