"""One control plane for all tests, with the platform's objects on it as the setup scripts apply them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import yaml

from tests.cluster.control_plane import BUILT, ControlPlane, Json, control_plane, program
from tests.deploy.manifests import ENVIRONMENTS, rendered

FIELD_MANAGER = ("--server-side", "--field-manager", "rayapp", "--force-conflicts")  # as cluster/scripts/lib/helm.sh


class Platform(NamedTuple):
    """A control plane with our objects, and how they differed from what was stored, right after they were applied."""

    plane: ControlPlane
    differences: dict[str, str]  # by environment, as `kubectl diff` prints them


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane with the CRDs of the platform."""
    for name in ("etcd", "kubernetes", "ray-operator", "kubectl", "helm"):
        program(name)
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        crds = f"--filename={BUILT / 'crds'}"
        running.kubectl("apply", "--server-side", crds)
        running.kubectl("wait", "--for=condition=Established", "--timeout=60s", crds)
        yield running


@pytest.fixture(scope="session")
def platform(plane: ControlPlane) -> Platform:
    """The objects of each environment, prod last, and the operator that makes pods of them."""
    differences = {}
    for environment in ENVIRONMENTS:
        text = yaml.safe_dump_all(objects(environment), sort_keys=False)
        plane.kubectl("apply", *FIELD_MANAGER, "--filename", "-", stdin=text)
        differences[environment] = plane.kubectl("diff", *FIELD_MANAGER, "--filename", "-", stdin=text, ok=False).stdout
    plane.start_operator("rayapp")
    return Platform(plane, differences)


def objects(environment: str) -> list[Json]:
    """What the setup applies, less what the operator that can be built here does not know yet."""
    found = rendered(environment)
    for obj in found:
        without_what_is_later(obj)
    return found


def without_what_is_later(obj: Json) -> Json:
    """The object without fields that KubeRay 1.7 brought; Go's proxy has 1.6.1."""
    for kind, field in (("RayService", "suspend"), ("RayCronJob", "timeZone")):
        if obj["kind"] == kind:
            obj["spec"].pop(field, None)
    return obj
