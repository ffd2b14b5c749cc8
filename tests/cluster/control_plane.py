"""A control plane of Kubernetes as processes on loopback: etcd, API server, controllers and KubeRay's operator.

It has no nodes: objects are accepted or refused, controllers do their work, pods are made and stay pending.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import ROOT, missing, run
from tests.support.ports import free_port
from tests.support.wait import until

BUILT = ROOT / ".cluster"

Json = dict[str, Any]
Finished = subprocess.CompletedProcess[str]
TWICE = re.compile(r"rayclusters\.ray\.io .* already exists")
within_a_minute = partial(until, patience_s=60)


def program(name: str) -> Path:
    """One that build.sh has built. Where it is absent the test is skipped, or fails where CI=true."""
    path = BUILT / "bin" / name
    if not path.is_file():
        missing(f"{path} is not here: run `make check-manifests`")
    return path


class ControlPlane:
    """Where a control plane answers, and its programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self._env = {"KUBECONFIG": str(self.kubeconfig), "HOME": str(folder)}
        self._processes: list[subprocess.Popen[bytes]] = []

    def kubectl(self, *words: str | Path, stdin: str | None = None, ok: bool = True) -> Finished:
        """The finished kubectl. ok: a non-zero exit fails the test with what kubectl printed."""
        return run([program("kubectl"), *words], env=self._env, stdin=stdin, ok=ok)

    def helm(self, *words: str | Path, ok: bool = True) -> Finished:
        """The finished Helm, in the same way."""
        return run([program("helm"), *words], env=self._env, ok=ok)

    def get(self, *words: str) -> Any:
        """What `kubectl get` finds."""
        return json.loads(self.kubectl("get", *words, "--output", "json").stdout)

    def apply(self, objects: Iterable[Json], *words: str, ok: bool = True) -> Finished:
        """Server-side, as the setup does it."""
        text = yaml.safe_dump_all(list(objects), sort_keys=False)
        return self.kubectl("apply", "--server-side", "--filename", "-", *words, stdin=text, ok=ok)

    def start(self, name: str, *words: str | Path) -> None:
        """Start a program; what it says goes to a file of its name."""
        binary = program("kubernetes" if name.startswith("kube-") else name)
        arguments = [name, *map(str, words)] if name.startswith("kube-") else list(map(str, words))
        with (self.folder / f"{name}.log").open("wb") as log:
            env = os.environ | self._env
            self._processes.append(
                subprocess.Popen([str(binary), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
            )

    def start_operator(self, namespace: str) -> None:
        """KubeRay's operator, for the objects of a namespace."""
        self.start(
            "ray-operator", "--watch-namespace", namespace, "--enable-leader-election=false",
            "--metrics-addr", f"127.0.0.1:{free_port()}", "--health-probe-bind-address", f"127.0.0.1:{free_port()}",
        )  # fmt: skip

    def refused(self, namespace: str) -> list[str]:
        """What could not be made: for a quota, the Pod Security Standard, a missing account.

        That the operator makes its cluster twice and is told that it is there already is no refusal.
        """
        events = self.get("events", "--namespace", namespace)["items"]
        failed = [event for event in events if event["reason"].startswith(("FailedCreate", "FailedToCreate"))]
        return [event["message"] for event in failed if not TWICE.search(event["message"])]

    def answers(self, *words: str) -> bool:
        """Whether `kubectl get` finds something."""
        return self.kubectl("get", *words, ok=False).returncode == 0

    def last_words(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """End all processes, the last one first."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """A running one, with its files in folder; at the end nothing of it is left."""
    plane = ControlPlane(folder)
    try:
        _start(plane)
        yield plane
    finally:
        plane.stop()
        shutil.rmtree(folder / "etcd", ignore_errors=True)


def _start(plane: ControlPlane) -> None:
    folder, token = plane.folder, secrets.token_hex(16)
    store, peer, api = (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", free_port())
    plane.start(
        "etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync",
        "--listen-client-urls", store, "--advertise-client-urls", store,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    )  # fmt: skip
    key, tokens = folder / "service-accounts.key", folder / "tokens.csv"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    tokens.write_text(f"{token},admin,admin,system:masters\n", encoding="utf-8")
    tokens.chmod(0o600)
    plane.start(
        "kube-apiserver", "--etcd-servers", store, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
        "--secure-port", str(api), "--cert-dir", folder, "--endpoint-reconciler-type", "none",
        "--service-cluster-ip-range", "10.96.0.0/16", "--authorization-mode", "Node,RBAC", "--allow-privileged",
        "--token-auth-file", tokens, "--service-account-issuer", "https://kubernetes.default.svc",
        "--service-account-key-file", key, "--service-account-signing-key-file", key,
    )  # fmt: skip
    _write_kubeconfig(plane, f"https://127.0.0.1:{api}", token)
    within_a_minute(lambda: plane.answers("--raw", "/readyz"), otherwise=plane.last_words)
    plane.start(
        "kube-controller-manager", "--kubeconfig", plane.kubeconfig, "--use-service-account-credentials",
        "--service-account-private-key-file", key, "--root-ca-file", folder / "apiserver.crt", "--leader-elect=false",
        "--authentication-kubeconfig", plane.kubeconfig, "--authorization-kubeconfig", plane.kubeconfig,
        "--secure-port", str(free_port()), "--bind-address", "127.0.0.1", "--cert-dir", folder / "manager",
    )  # fmt: skip
    within_a_minute(lambda: plane.answers("serviceaccount", "default"), otherwise=plane.last_words)


def _write_kubeconfig(plane: ControlPlane, server: str, token: str) -> None:
    cluster = {"server": server, "certificate-authority": str(plane.folder / "apiserver.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    plane.kubeconfig.touch(mode=0o600)
    plane.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
