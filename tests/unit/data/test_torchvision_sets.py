"""torchvision's data sets, downloaded from a server on this machine: small archives in the real formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets as tv

from rayapp.config.train import DataConfig
from rayapp.data.datasets import load
from rayapp.errors import DataError

NUM_TRAIN, NUM_TEST = 40, 20
CIFAR100_NAMES = [f"fine {index}" for index in range(100)]


class Server:
    """Serves a folder, slowly enough for two processes to meet, and counts what was fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: Counter[str] = Counter()
        fetched = self.fetched

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Method") == "HEAD":  # how torchvision 0.29 asks where a URL leads
                    return super().do_HEAD()
                fetched[self.path.removeprefix("/")] += 1
                time.sleep(0.2)
                return super().do_GET()

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    served = Server(folder)
    thread = threading.Thread(target=served.http.serve_forever, daemon=True)
    thread.start()
    yield served
    served.http.shutdown()
    served.http.server_close()
    thread.join()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def cifar_batch(count: int, labels_key: str, seed: int) -> bytes:
    data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, labels_key: [index % 10 for index in range(count)]})


def serve_cifar(server: Server, kind: type[tv.CIFAR10]) -> dict[str, Any]:
    """A small archive in kind's format on the server, and the attributes of kind that lead there."""
    labels_key = "labels" if kind is tv.CIFAR10 else "fine_labels"
    names = list("abcdefghij") if kind is tv.CIFAR10 else CIFAR100_NAMES
    per_file = NUM_TRAIN // len(kind.train_list)
    files = {name: cifar_batch(per_file, labels_key, seed) for seed, (name, _) in enumerate(kind.train_list)}
    files[kind.test_list[0][0]] = cifar_batch(NUM_TEST, labels_key, 99)
    files[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: names})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (server.folder / kind.filename).write_bytes(archive.getvalue())
    return {
        "url": server.url + kind.filename,
        "tgz_md5": md5(archive.getvalue()),
        "train_list": [[name, md5(files[name])] for name, _ in kind.train_list],
        "test_list": [[name, md5(files[name])] for name, _ in kind.test_list],
        "meta": {**kind.meta, "md5": md5(files[kind.meta["filename"]])},
    }


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """array in the format of MNIST's files, http://yann.lecun.com/exdb/mnist/."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def serve_fashion_mnist(server: Server) -> dict[str, Any]:
    random = np.random.default_rng(0)
    files = {}
    for part, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        files[f"{part}-images-idx3-ubyte.gz"] = idx(random.integers(0, 256, (count, 28, 28)))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(np.arange(count) % 10)
    for name, content in files.items():
        (server.folder / name).write_bytes(content)
    return {"mirrors": [server.url], "resources": [(name, md5(content)) for name, content in files.items()]}


def patch(monkeypatch: pytest.MonkeyPatch, kind: type, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        monkeypatch.setattr(kind, name, value)


def test_cifar10_is_downloaded_once(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_cifar100_has_its_fine_class_names(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch):
    """F26: names, not class_0 to class_99."""
    patch(monkeypatch, tv.CIFAR100, serve_cifar(server, tv.CIFAR100))

    assert load(DataConfig(dataset="cifar100"), home).info.class_names == tuple(CIFAR100_NAMES)


def test_fashion_mnist_is_grey_28_px(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch):
    """F12: grey images come with three channels, and mean and std to match."""
    patch(monkeypatch, tv.FashionMNIST, serve_fashion_mnist(server))
    data = load(DataConfig(dataset="fashion_mnist"), home)

    assert data.info.class_names[-1] == "Ankle boot"
    assert (data.info.height_px, data.info.width_px, data.info.channels, data.info.flip) == (28, 28, 1, True)
    assert len(data.info.mean) == len(data.info.std) == 3
    assert data.train.images_nhwc.shape == (NUM_TRAIN, 28, 28, 3)
    assert data.test.labels_n.tolist() == [index % 10 for index in range(NUM_TEST)]


def test_downloads_go_to_the_given_path(server: Server, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    load(DataConfig(dataset="cifar10", path=str(tmp_path / "mine")), home)

    assert (tmp_path / "mine" / "cifar-10-python.tar.gz").is_file()
    with pytest.raises(DataError, match="'s3://bucket/x' of 'cifar10' must be a local folder"):
        load(DataConfig(dataset="cifar10", path="s3://bucket/x"), home)


def test_a_wrong_checksum_is_said_and_the_file_removed(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    whole = (server.folder / tv.CIFAR10.filename).read_bytes()
    (server.folder / tv.CIFAR10.filename).write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"wrong checksum .*was removed; run the same command again, put cifar-10"):
        load(DataConfig(dataset="cifar10"), home)
    assert not (home / tv.CIFAR10.filename).exists()

    (server.folder / tv.CIFAR10.filename).write_bytes(whole)
    assert load(DataConfig(dataset="cifar10"), home).info.num_train == NUM_TRAIN


def test_a_file_cut_short_is_downloaded_again(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    home.mkdir()
    (home / tv.CIFAR10.filename).write_bytes(b"half of it")

    assert load(DataConfig(dataset="cifar10"), home).info.num_train == NUM_TRAIN


def test_offline_names_the_files_the_folder_and_the_alternatives(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
):
    patch(monkeypatch, tv.CIFAR10, serve_cifar(server, tv.CIFAR10))
    patch(monkeypatch, tv.FashionMNIST, serve_fashion_mnist(server))
    archive = (server.folder / tv.CIFAR10.filename).read_bytes()
    (server.folder / tv.CIFAR10.filename).unlink()
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz cannot be downloaded \(File not found\)"):
        load(DataConfig(dataset="cifar10"), home)

    server.http.shutdown()
    server.http.server_close()
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


def test_two_processes_download_once(server: Server, home: Path):
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
