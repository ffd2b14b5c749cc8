"""A Kubernetes API server on 127.0.0.1 for RayJobs: what KubeRay would make of them is played by a plan.

Strict, so that a client's mistake is seen: an unknown path, an object that breaks the schema of ray.io, a second object
of one name and the deletion of an absent one are refused as Kubernetes refuses them, and kept in `refused`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

Json = dict[str, Any]
CONFIG_MAPS = "/api/v1/namespaces/rayapp/configmaps"
RAYJOBS = "/apis/ray.io/v1/namespaces/rayapp/rayjobs"

STARTING: list[Json] = [{}, {"jobDeploymentStatus": "Initializing"}]
RUNNING: Json = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
RETRYING: Json = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "message": "one try failed"}
SUCCEEDED: Json = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
STOPPED: Json = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED", "message": "stopped by the user"}


def failed(exit_code: int, log: str) -> Json:
    """The status of a job whose command failed, in Ray's own words."""
    message = f"Job entrypoint command failed with exit code {exit_code}, last available logs (truncated to 20,000 "
    message += f"chars):\n{log}"
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": message}


@dataclass
class StandIn:
    """plan: job (the name before the first dash) -> the last status of its first RayJob, its second, and so on.

    The last one is that of all further ones; a job without a plan succeeds. RUNNING never ends. answers: what to answer
    instead, once: (method, path's beginning) -> HTTP status; a POST has its effect nevertheless.
    """

    templates: Mapping[str, str]
    plan: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    schema: Json | None = None
    answers: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    created: list[Json] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    _ahead: dict[str, list[Json]] = field(default_factory=dict)  # statuses to come, by name; the last one stays
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"stand_in": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def kubeconfig(self, folder: Path) -> Path:
        """A file by which clients find this server."""
        here = "stand-in"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": here,
            "clusters": [{"name": here, "cluster": {"server": self.url}}],
            "users": [{"name": here, "user": {"token": here}}],
            "contexts": [{"name": here, "context": {"cluster": here, "user": here}}],
        }
        file = folder / "kubeconfig.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    def names(self) -> list[str]:
        """Of all RayJobs ever created, in order."""
        return [rayjob["metadata"]["name"] for rayjob in self.created]

    def answer(self, method: str, target: str, body: Json | None) -> tuple[int, Json]:
        """HTTP status and object."""
        with self._lock:
            path = urlsplit(target).path
            self.asked.append((method, path))
            status, answer = self._do(method, target, body)
            for (planned_method, beginning), statuses in self.answers.items():
                if statuses and planned_method == method and path.startswith(beginning):
                    status = statuses.pop(0)
                    return status, _status(status, "Planned", f"the plan says {status}")
            if status >= 400:
                self.refused.append(f"{method} {target}: {status} {answer['message']}")
            return status, answer

    def _do(self, method: str, target: str, body: Json | None) -> tuple[int, Json]:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        folder, _, name = path.rpartition("/")
        if (method, path) == ("GET", f"{CONFIG_MAPS}/rayjob-templates"):
            metadata = {"name": "rayjob-templates", "namespace": "rayapp"}
            return 200, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(self.templates)}
        if (method, path) == ("POST", RAYJOBS):
            return self._create(body or {})
        if (method, path) == ("GET", RAYJOBS):
            return 200, self._list(query.get("labelSelector", [""])[0])
        if (method, folder) == ("GET", RAYJOBS):
            return self._read(name)
        if (method, folder) == ("DELETE", RAYJOBS):
            return self._delete(name)
        return 404, _status(404, "NotFound", "the server could not find the requested resource")

    def _create(self, rayjob: Json) -> tuple[int, Json]:
        wrong = [f"{error.json_path}: {error.message}" for error in self._validator.iter_errors(rayjob)]
        name = rayjob.get("metadata", {}).get("name", "")
        if not name or len(name) > 47:  # KubeRay's limit
            wrong.append(f"metadata.name: {name!r} has to have 1 to 47 characters")
        if wrong:
            return 422, _status(422, "Invalid", "; ".join(wrong))
        if name in self._ahead:
            return 409, _status(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        job = name.split("-")[0]
        nth = sum(other.split("-")[0] == job for other in self.names())
        plan = self.plan.get(job, [SUCCEEDED])
        last = plan[min(nth, len(plan) - 1)]
        self._ahead[name] = [*STARTING, RUNNING, RETRYING, RUNNING, last]
        self.created.append(rayjob)
        return 201, rayjob

    def _read(self, name: str) -> tuple[int, Json]:
        """Each look brings the RayJob one step on."""
        if name not in self._ahead:
            return 404, _status(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        ahead = self._ahead[name]
        return 200, self._object(name, ahead.pop(0) if len(ahead) > 1 else ahead[0])

    def _list(self, selector: str) -> Json:
        key, _, value = selector.partition("=")
        found = [r for r in self.created if r["metadata"]["name"] in self._ahead]
        chosen = [r["metadata"]["name"] for r in found if not key or r["metadata"].get("labels", {}).get(key) == value]
        items = [self._object(name, self._ahead[name][0]) for name in chosen]
        return {"apiVersion": "ray.io/v1", "kind": "RayJobList", "metadata": {}, "items": items}

    def _delete(self, name: str) -> tuple[int, Json]:
        if name not in self._ahead:
            return 404, _status(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        del self._ahead[name]
        self.deleted.append(name)
        return 200, {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"}

    def _object(self, name: str, status: Json) -> Json:
        rayjob = next(r for r in reversed(self.created) if r["metadata"]["name"] == name)
        return {**rayjob, "status": status} if status else dict(rayjob)

    @property
    def _validator(self) -> Draft7Validator:
        wanted = {"required": ["apiVersion", "kind", "metadata", "spec"], "properties": {"kind": {"const": "RayJob"}}}
        return Draft7Validator(self.schema or wanted)


def _status(code: int, reason: str, message: str) -> Json:
    status = {"status": "Failure", "code": code, "reason": reason, "message": message}
    return {"apiVersion": "v1", "kind": "Status", "metadata": {}, **status}


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self.stand_in.answer(method, self.path, json.loads(body) if body else None)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: `asked` has it."""
