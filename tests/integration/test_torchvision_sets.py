"""torchvision's data sets, downloaded from a server on this machine: small archives in the real formats."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets as tv

from rayapp.config.train import DataConfig
from rayapp.data.datasets import load
from rayapp.errors import DataError
from tests.support.servers import FileServer
from tests.support.torchvision_sets import CIFAR100_NAMES, NUM_TEST, NUM_TRAIN, serve_cifar, serve_fashion_mnist


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    served = FileServer(folder)
    yield served
    served.close()


def patch(monkeypatch: pytest.MonkeyPatch, kind: type, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        monkeypatch.setattr(kind, name, value)


def test_cifar10_is_downloaded_once(server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    data = load(DataConfig(dataset="cifar10"), home)
    again = load(DataConfig(dataset="cifar10"), home)

    assert data.info.class_names == tuple("abcdefghij")
    assert (data.info.height_px, data.info.channels, data.info.flip) == (32, 3, True)
    assert data.train.images_nhwc.shape == (NUM_TRAIN, 32, 32, 3)
    assert data.test.images_nhwc.shape == (NUM_TEST, 32, 32, 3)
    first = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)[0].reshape(3, 32, 32)
    assert np.array_equal(data.train.images_nhwc[0], first.transpose(1, 2, 0))
    assert again.info == data.info
    assert server.fetched == {"cifar-10-python.tar.gz": 1}


def test_cifar100_has_its_fine_class_names(server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch):
    """F26: names, not class_0 to class_99."""
    patch(monkeypatch, tv.CIFAR100, serve_cifar(server, tv.CIFAR100))

    assert load(DataConfig(dataset="cifar100"), home).info.class_names == tuple(CIFAR100_NAMES)


def test_fashion_mnist_is_grey_28_px(server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch):
    """F12: grey images come with three channels, and mean and std to match."""
    patch(monkeypatch, tv.FashionMNIST, serve_fashion_mnist(server))
    data = load(DataConfig(dataset="fashion_mnist"), home)

    assert data.info.class_names[-1] == "Ankle boot"
    assert (data.info.height_px, data.info.width_px, data.info.channels, data.info.flip) == (28, 28, 1, True)
    assert len(data.info.mean) == len(data.info.std) == 3
    assert data.train.images_nhwc.shape == (NUM_TRAIN, 28, 28, 3)
    assert data.test.labels_n.tolist() == [index % 10 for index in range(NUM_TEST)]


def test_downloads_go_to_the_given_path(
    server: FileServer, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    load(DataConfig(dataset="cifar10", path=str(tmp_path / "mine")), home)

    assert (tmp_path / "mine" / "cifar-10-python.tar.gz").is_file()
    with pytest.raises(DataError, match="'s3://bucket/x' of 'cifar10' must be a local folder"):
        load(DataConfig(dataset="cifar10", path="s3://bucket/x"), home)


def test_a_wrong_checksum_is_said_and_the_file_removed(server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    whole = (server.folder / tv.CIFAR10.filename).read_bytes()
    (server.folder / tv.CIFAR10.filename).write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"wrong checksum .*was removed; run the same command again, put cifar-10"):
        load(DataConfig(dataset="cifar10"), home)
    assert not (home / tv.CIFAR10.filename).exists()

    (server.folder / tv.CIFAR10.filename).write_bytes(whole)
    assert load(DataConfig(dataset="cifar10"), home).info.num_train == NUM_TRAIN


def test_a_file_cut_short_is_downloaded_again(server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    home.mkdir()
    (home / tv.CIFAR10.filename).write_bytes(b"half of it")

    assert load(DataConfig(dataset="cifar10"), home).info.num_train == NUM_TRAIN


def test_offline_names_the_files_the_folder_and_the_alternatives(
    server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    patch(monkeypatch, tv.FashionMNIST, serve_fashion_mnist(server))
    archive = (server.folder / tv.CIFAR10.filename).read_bytes()
    (server.folder / tv.CIFAR10.filename).unlink()
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz cannot be downloaded \(File not found\)"):
        load(DataConfig(dataset="cifar10"), home)

    server.close()
    with pytest.raises(DataError) as offline:
        load(DataConfig(dataset="fashion_mnist"), home)
    message = str(offline.value)
    assert "\n" not in message
    assert f"{server.url}train-images-idx3-ubyte.gz cannot be downloaded" in message
    assert "t10k-labels-idx1-ubyte.gz" in message
    assert f"into {home / 'FashionMNIST' / 'raw'} yourself" in message
    assert "--data.dataset digits, or --data.dataset parquet --data.path FOLDER" in message

    (home / tv.CIFAR10.filename).write_bytes(archive)  # as the message says
    assert load(DataConfig(dataset="cifar10"), home).info.num_train == NUM_TRAIN


def test_two_processes_download_once(server: FileServer, home: Path):
    attributes = serve_cifar(server, tv.CIFAR10)
    code = """
import json, sys
from pathlib import Path
from torchvision.datasets import CIFAR10
from rayapp.config.train import DataConfig
from rayapp.data.datasets import load
for name, value in json.loads(sys.argv[1]).items():
    setattr(CIFAR10, name, value)
print(load(DataConfig(dataset="cifar10"), Path(sys.argv[2])).info.digest)
"""
    command = [sys.executable, "-c", code, json.dumps(attributes), str(home)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = [process.communicate(timeout=120)[0].strip() for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert digests[0] == digests[1]
    assert digests[0].startswith("sha256:")
    assert server.fetched == {"cifar-10-python.tar.gz": 1}
