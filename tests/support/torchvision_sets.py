"""Small archives in the real formats of torchvision's data sets, on a server of this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from typing import Any

import numpy as np
from torchvision import datasets as tv

from tests.support.servers import FileServer

NUM_TRAIN, NUM_TEST = 40, 20

CIFAR100_NAMES = [f"fine {index}" for index in range(100)]


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def cifar_batch(count: int, labels_key: str, seed: int) -> bytes:
    data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, labels_key: [index % 10 for index in range(count)]})


def serve_cifar(server: FileServer, kind: type[tv.CIFAR10]) -> dict[str, Any]:
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


def serve_fashion_mnist(server: FileServer) -> dict[str, Any]:
    random = np.random.default_rng(0)
    files = {}
    for part, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        files[f"{part}-images-idx3-ubyte.gz"] = idx(random.integers(0, 256, (count, 28, 28)))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(np.arange(count) % 10)
    for name, content in files.items():
        (server.folder / name).write_bytes(content)
    return {"mirrors": [server.url], "resources": [(name, md5(content)) for name, content in files.items()]}
