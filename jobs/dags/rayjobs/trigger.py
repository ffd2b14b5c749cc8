"""Waits in the triggerer for the end of a RayJob, so that no worker waits for hours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from rayjobs.manifest import GROUP, NAMESPACE, PLURAL, VERSION, ending, phase

NOT_FOUND = 404
NOT_ALLOWED = {401, 403}  # waiting does not help


class RayJobTrigger(BaseTrigger):
    """Fires once: the RayJob succeeded, failed, was deleted, cannot be seen, or runs past give_up_at (Unix time).

    An API server that does not answer is asked again until give_up_at: the RayJob runs on without it.
    """

    def __init__(self, *, name: str, conn_id: str, give_up_at: float, poll_interval_s: float) -> None:
        super().__init__()
        self.name = name
        self.conn_id = conn_id
        self.give_up_at = give_up_at
        self.poll_interval_s = poll_interval_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        fields = ("name", "conn_id", "give_up_at", "poll_interval_s")
        return "rayjobs.trigger.RayJobTrigger", {field: getattr(self, field) for field in fields}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        last = ""
        while True:
            rayjob, event = await self._look()
            if rayjob and phase(rayjob) != last:
                last = phase(rayjob)
                self.log.info("RayJob %s/%s: %s", NAMESPACE, self.name, last)
            if event is None and time.time() > self.give_up_at:
                event = self._event("timeout", f"not finished in time, last seen: {last or 'never'}")
            if event:
                yield TriggerEvent(event)
                return
            await asyncio.sleep(self.poll_interval_s)

    async def on_kill(self) -> None:
        """Somebody marked or cleared the waiting task: its RayJob stops. Not called when the triggerer restarts."""
        import kubernetes_asyncio.client as kubernetes

        try:
            async with self._connection() as connection:
                await kubernetes.CustomObjectsApi(connection).delete_namespaced_custom_object(**self._address())
            self.log.info("RayJob %s/%s is deleted", NAMESPACE, self.name)
        except kubernetes.ApiException as error:
            if error.status != NOT_FOUND:
                raise

    async def _look(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The RayJob, if it is seen, and the event, if there is one."""
        import aiohttp
        import kubernetes_asyncio.client as kubernetes

        try:
            async with self._connection() as connection:
                rayjob = await kubernetes.CustomObjectsApi(connection).get_namespaced_custom_object(**self._address())
            return rayjob, ending(rayjob)
        except kubernetes.ApiException as error:
            if error.status == NOT_FOUND:
                return None, self._event("gone", "somebody deleted it")
            if error.status in NOT_ALLOWED:
                return None, self._event("unseen", f"the API server refuses: {error.status} {error.reason}")
            self.log.warning("RayJob %s/%s: HTTP %s, asking again", NAMESPACE, self.name, error.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.log.warning("RayJob %s/%s: %r, asking again", NAMESPACE, self.name, error)
        return None, None

    def _connection(self) -> Any:
        # Imported here: the provider takes a second, and each parsing of a DAG would pay for it.
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook

        return AsyncKubernetesHook(kubernetes_conn_id=self.conn_id).get_conn()

    def _address(self) -> dict[str, Any]:
        return {"group": GROUP, "version": VERSION, "namespace": NAMESPACE, "plural": PLURAL, "name": self.name}

    def _event(self, end: str, message: str) -> dict[str, Any]:
        return {"name": self.name, "end": end, "exit_code": None, "message": message}
