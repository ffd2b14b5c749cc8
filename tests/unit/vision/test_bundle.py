from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rayapp.data.datasets import DatasetInfo
from rayapp.errors import BundleError, ConfigError
from rayapp.vision.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle, onnx_session, write_bundle
from rayapp.vision.predictor import Predictor, _TorchEngine, resolve_device
from tests.support.networks import written_for


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    info = DatasetInfo(
        name="digits",
        class_names=("a", "b", "c", "d"),
        height_px=32,
        width_px=32,
        channels=3,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.3),
        flip=False,
        digest="sha256:1",
        num_train=1,
        num_test=1,
        num_skipped=0,
    )
    return written_for(tmp_path_factory.mktemp("bundle"), info).folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_onnx_and_torch_agree_at_any_batch_size(written: Path, n: int) -> None:
    bundle = Bundle.open(written)
    onnx = Predictor.load(bundle, device="cpu")
    eager = Predictor(bundle, "cpu", _TorchEngine(bundle, "cpu"))
    assert np.abs(onnx.predict(images(n)) - eager.predict(images(n))).max() < 1e-5
    assert onnx.predict(images(n)).sum(1) == pytest.approx(np.ones(n), abs=1e-6)
    assert onnx.predict(images(n)).std() > 0.01  # the model does react to its input


def test_the_manifest_tells_what_the_model_is(written: Path) -> None:
    bundle = Bundle.open(written)
    assert bundle.manifest.class_names == ("a", "b", "c", "d")
    assert set(bundle.manifest.files) == {WEIGHTS, GRAPH}
    assert bundle.digest.startswith("sha256:")
    assert bundle.manifest.created


@pytest.mark.parametrize("name", [WEIGHTS, GRAPH])
def test_a_changed_file_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} has the digest .* the file was changed: refused"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", [WEIGHTS, GRAPH, MANIFEST])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(copy)


def test_a_manifest_of_another_format_is_refused(copy: Path) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(BundleError, match="has format 99, this version reads 1"):
        Bundle.open(copy)


def test_a_manifest_with_an_unknown_field_is_refused(copy: Path) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(content | {"surprise": 1}))
    with pytest.raises(BundleError, match="surprise"):
        Bundle.open(copy)


def test_F60_no_file_of_a_bundle_is_a_pickle(written: Path) -> None:
    for path in written.iterdir():
        head = path.read_bytes()[:2]
        assert head not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"), path


def test_the_digest_changes_with_the_weights(written: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(written)
    model = bundle.load_model()
    with torch.no_grad():
        model.backbone.fc.bias += 1  # type: ignore[union-attr]
    assert write_bundle(tmp_path, model, bundle.manifest).digest != bundle.digest


def test_a_device_that_is_not_here_is_named(written: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=r"device 'cuda' is not available here \(available: "):
        Predictor.load(Bundle.open(written), device="cuda")
    assert resolve_device("cpu") == "cpu"


def test_a_graph_that_is_none_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(b"no graph")
    with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
        onnx_session(tmp_path / GRAPH, num_threads=1)
    with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
        onnx_session(tmp_path / "missing.onnx", num_threads=1)
