"""Builds our images for real and runs commands in them: with buildah, without an engine, a registry or namespaces.

It has to be root. IMAGE_BASE: a base image of a registry (python:3.11-slim-bookworm); without it Debian's
debootstrap makes one. IMAGE_STORE: a folder that keeps the layers for the next time.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.tools import ROOT, run, tool

BASE = "localhost/rayapp-base:bookworm"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # as in the Dockerfile
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FREE_BYTES = 25 * 10**9  # the CUDA libraries are in the store twice, and once as an archive
SHM = "1g"  # Ray's objects; 64 MB are usual


@dataclass(frozen=True)
class Store:
    """A folder with images and containers of its own."""

    folder: Path
    base: str

    @property
    def env(self) -> dict[str, str]:
        """What makes buildah work in the folder."""
        return {
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "TMPDIR": str(self.folder),
            "BUILDAH_ISOLATION": "chroot",
        }

    def buildah(self, *words: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """A finished buildah."""
        return run(["nice", "-n", "19", tool("buildah"), *words], env=self.env, ok=ok)

    def build(self, variant: str, *, torch_index: str = "", ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Build an image with the script that people use."""
        env = {**self.env, "ENGINE": "buildah", "BASE": self.base, "TORCH_INDEX": torch_index}
        command = ["nice", "-n", "19", ROOT / "cluster/scripts/build-images.sh", variant]
        return run([*command, "--", *(["--pull=never"] if self.base == BASE else [])], env=env, ok=ok)

    def run(self, image: str, script: str, *, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """What a shell script says in a new container, as the image's own user."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # engines allow a million; HAProxy stops below 10,300
        options = ["--pull=never", "--shm-size", SHM, "--ulimit", f"nofile={files}:{files}"]
        container = self.buildah("from", *options, image).stdout.strip()
        try:
            return self.buildah("run", container, "--", "bash", "-c", f"set -euo pipefail\n{script}", ok=ok)
        finally:
            self.buildah("rm", container)

    def config(self, image: str) -> dict[str, Any]:
        """User, Cmd, Env, Healthcheck and so on."""
        inspected = self.buildah("inspect", "--type", "image", image).stdout
        config: dict[str, Any] = json.loads(inspected)["Docker"]["config"]
        return config

    def size(self, image: str) -> str:
        """For people: 1.18 GB."""
        return self.buildah("images", "--format", "{{.Size}}", image).stdout.splitlines()[0]


@contextmanager
def store() -> Iterator[Store]:
    """A store with a base image; it is removed at the end, unless IMAGE_STORE names it."""
    kept = os.environ.get("IMAGE_STORE")
    folder = Path(kept or tempfile.mkdtemp(prefix="rayapp-images-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    assert free > FREE_BYTES, f"{folder}: {free / 1e9:.0f} GB are free, {FREE_BYTES / 1e9:.0f} GB are needed"
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n'
    )
    images = Store(folder, os.environ.get("IMAGE_BASE", BASE))
    try:
        if images.base == BASE and images.buildah("inspect", "--type", "image", BASE, ok=False).returncode:
            _make_base(images)
        yield images
    finally:
        if not kept:
            images.buildah("rm", "--all", ok=False)
            images.buildah("rmi", "--all", "--force", ok=False)
            shutil.rmtree(folder)


def _make_base(images: Store) -> None:
    """Debian bookworm with its Python 3.11, in the place of the official Python image."""
    tree = images.folder / "rootfs"
    packages = "python3,python3-venv,ca-certificates"
    run(["nice", "-n", "19", tool("debootstrap"), "--variant=minbase", f"--include={packages}", "bookworm", tree])
    run(["chroot", tree, "apt-get", "clean"])
    shutil.copy(CERTIFICATES, tree / CERTIFICATES.relative_to("/"))  # where a proxy has its own, the build needs it too
    container = images.buildah("from", "scratch").stdout.strip()
    images.buildah("add", "--quiet", container, tree, "/")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    images.buildah("config", "--env", f"PATH={path}", "--env", f"PIP_CERT={CERTIFICATES}", container)
    images.buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(tree)


def cpu_build_is_there() -> bool:
    """Does the index answer that has torch without CUDA?"""
    try:
        with urllib.request.urlopen(f"{TORCH_INDEX}/torch/", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False
