"""Every data set with every model: an epoch of training, a bundle, and the same answers from what the bundle holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets as tv

from rayapp.config.base import DatasetName
from rayapp.config.train import AugmentConfig, DataConfig, ModelConfig, OptimConfig
from rayapp.data.datasets import SOURCES, Dataset, DatasetInfo, load
from rayapp.data.preprocess import Images
from rayapp.vision.augment import Augment
from rayapp.vision.bundle import Bundle, Manifest, write_bundle
from rayapp.vision.loaders import InMemoryLoader
from rayapp.vision.loop import EpochReport, fit
from rayapp.vision.models import ARCHITECTURES, Classifier, build_model
from rayapp.vision.optim import TrainPlan, build_optimizer
from rayapp.vision.predictor import Predictor
from rayapp.vision.state import TrainState
from tests.support.images import write_folder, write_parquet
from tests.support.servers import FileServer
from tests.support.torchvision_sets import serve_cifar, serve_fashion_mnist

CPU = torch.device("cpu")
NUM_IMAGES = 24
DOWNLOADED: dict[str, tuple[type, Callable[[FileServer], dict[str, object]]]] = {
    "cifar10": (tv.CIFAR10, lambda served: serve_cifar(served, tv.CIFAR10)),
    "cifar100": (tv.CIFAR100, lambda served: serve_cifar(served, tv.CIFAR100)),
    "fashion_mnist": (tv.FashionMNIST, serve_fashion_mnist),
}


@pytest.fixture(scope="module")
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    name: DatasetName = request.param
    path, tmp_path = None, tmp_path_factory.mktemp(name)
    if name in DOWNLOADED:
        return downloaded(name, tmp_path)
    if name == "folder":
        path = write_folder(tmp_path / "folder" / "train", {"a": 20, "b": 20}).parent
    elif name == "parquet":
        path = write_parquet(tmp_path / "parquet" / "train.parquet", [0, 1] * 20).parent
    return load(DataConfig(dataset=name, path=path and str(path)), tmp_path / "home")


def downloaded(name: DatasetName, folder: Path) -> Dataset:
    kind, serve = DOWNLOADED[name]
    (folder / "served").mkdir()
    server = FileServer(folder / "served")
    with pytest.MonkeyPatch.context() as patch:
        for attribute, value in serve(server).items():
            patch.setattr(kind, attribute, value)
        dataset = load(DataConfig(dataset=name), folder / "home")
    server.close()
    return dataset


def trained(name: str, dataset: Dataset) -> tuple[Classifier, EpochReport]:
    info, images, rows = dataset.info, dataset.train, np.arange(NUM_IMAGES)
    assert isinstance(images, Images)
    plan = TrainPlan.of(OptimConfig(epochs=1, batch_size=8), len(rows))
    torch.manual_seed(0)
    px = min(info.height_px, info.width_px)
    model = build_model(ModelConfig(name=name), num_classes=info.num_classes, image_px=px, mean=info.mean, std=info.std)
    shape = {"height_px": info.height_px, "flip": info.flip, "num_classes": info.num_classes}
    augment = Augment.from_config(AugmentConfig(cutout_px=4, random_ops=1, mixup_alpha=0.2), **shape)
    train = InMemoryLoader(images, rows, batch_size=8, device=CPU, augment=augment)
    validation = InMemoryLoader(images, rows, batch_size=8, device=CPU)
    (report,) = fit(TrainState.create(model, build_optimizer(model, plan), plan), train, validation)
    assert isinstance(report, EpochReport)
    return model, report


def manifest_of(name: str, info: DatasetInfo) -> Manifest:
    return Manifest(
        model=ModelConfig(name=name),
        preprocess=info.preprocess,
        class_names=info.class_names,
        mean=info.mean,
        std=info.std,
        data=DataConfig(dataset=info.name, path="somewhere" if info.name in ("folder", "parquet") else None),
        data_digest=info.digest,
        split_digest="sha256:2",
        git_sha="unknown",
        versions={},
        metrics={},
    )


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("dataset", sorted(SOURCES), indirect=True)
def test_every_data_set_and_model_trains_an_epoch(dataset: Dataset, name: str) -> None:
    report = trained(name, dataset)[1]
    assert math.isfinite(report.train_loss)
    assert report.step == NUM_IMAGES // 8


# an export takes seconds, so each data set meets one model here
@pytest.mark.parametrize(
    ("dataset", "name"), [*zip(sorted(SOURCES), itertools.cycle(sorted(ARCHITECTURES)))], indirect=["dataset"]
)
def test_the_bundles_of_every_data_set_and_every_model_round_trip(dataset: Dataset, name: str, tmp_path: Path) -> None:
    model = trained(name, dataset)[0]
    write_bundle(tmp_path / "bundle", model, manifest_of(name, dataset.info))
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.class_names == dataset.info.class_names
    images_nhwc = np.array(dataset.train.images_nhwc[:3])  # type: ignore[union-attr]  # a copy: torch wants to write
    with torch.inference_mode():
        expected_nk = model.eval()(torch.from_numpy(images_nhwc)).softmax(1).numpy()
    probabilities_nk = Predictor.load(bundle, device="cpu").predict(images_nhwc)
    assert np.allclose(probabilities_nk, expected_nk, atol=1e-4)
