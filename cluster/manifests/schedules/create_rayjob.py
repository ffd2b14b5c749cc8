"""Creates a RayJob from a template file and waits for its end: exit 0 if it succeeded, 1 if it did not.

    python create_rayjob.py /templates/pipeline.yaml [ENTRYPOINT]

What a CronJob runs, in a pod of its own; ENTRYPOINT goes over the template's. It talks to the Kubernetes API with the
pod's service account. When the API is away it goes on asking; the CronJob's activeDeadlineSeconds is the limit.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT_FOLDER", "/var/run/secrets/kubernetes.io/serviceaccount"))
POLL_S = float(os.environ.get("POLL_S", "15"))


def ask(path: str, body: Json | None = None) -> Json:
    """The API server's answer; with a body it is a POST."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    headers = {
        "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",  # it is renewed: read each time
        "Content-Type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"https://{host}:{port}{path}", data, headers)
    tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=30, context=tls) as answer:  # noqa: S310 - always https
        result: Json = json.load(answer)
        return result


def outcome(status: Json) -> bool | None:
    """Whether the job succeeded; None while it is not over."""
    deployment, job = status.get("jobDeploymentStatus"), status.get("jobStatus")
    if deployment == "Complete":
        return job == "SUCCEEDED"
    if deployment in ("Failed", "ValidationFailed"):
        return False
    return None


def wait_for(path: str) -> Json:
    """The status of the RayJob when it is over."""
    told = ""
    while True:
        try:
            status = ask(path).get("status") or {}
        except urllib.error.HTTPError as error:
            if not _passes(error):
                raise
            status = {"jobDeploymentStatus": f"unknown, the API says {error.code}"}
        except OSError as error:
            status = {"jobDeploymentStatus": f"unknown, {error}"}
        now = f"{status.get('jobDeploymentStatus') or 'waiting'} {status.get('jobStatus') or ''}".strip()
        if now != told:
            print(now, flush=True)
            told = now
        if outcome(status) is not None:
            return status
        time.sleep(POLL_S)


def create(jobs: str, body: Json) -> str:
    """The name of the RayJob, which is there once, however often the API server has to be asked."""
    beginning = body["metadata"].pop("generateName")
    body["metadata"]["name"] = name = f"{beginning}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    for patience in (1, 5, 25, None):
        try:
            ask(jobs, body)
            break
        except urllib.error.HTTPError as error:
            if error.code == 409:  # an answer was lost, not the job
                break
            if patience is None or not _passes(error):
                raise SystemExit(f"rayjob/{name} is refused: {error.read().decode(errors='replace')}") from error
            print(f"the API says {error.code}", flush=True)
        except OSError as error:
            if patience is None:
                raise
            print(error, flush=True)
        time.sleep(patience * POLL_S)
    return name


def _passes(error: urllib.error.HTTPError) -> bool:
    return error.code >= 500 or error.code == 429


def main(template: str, entrypoint: str = "") -> int:
    """The exit code."""
    body = yaml.safe_load(Path(template).read_text(encoding="utf-8"))
    if entrypoint:
        body["spec"]["entrypoint"] = entrypoint
    jobs = f"/apis/ray.io/v1/namespaces/{body['metadata']['namespace']}/rayjobs"
    name = create(jobs, body)
    print(f"created rayjob/{name}; its log: kubectl -n {body['metadata']['namespace']} logs -f job/{name}", flush=True)
    status = wait_for(f"{jobs}/{name}")
    if outcome(status):
        return 0
    print(f"rayjob/{name} failed: {status.get('reason', '')} {status.get('message', '')}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
