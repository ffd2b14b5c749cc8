"""CIFAR-10 the way it is usually written: Dataset, per-sample transforms, DataLoader, DDP. A file of its own.

    python plain.py --data FOLDER                                  one process, torch's default number of threads
    torchrun --nproc-per-node 2 plain.py --data FOLDER             two processes (DDP)

FOLDER holds train.parquet in Hugging Face's layout. Prints one JSON line an epoch. Recipe: SGD with Nesterov momentum,
one-cycle learning rate, label smoothing, random crop and flip; the same as rayapp's default, so that only the code
around the model differs. Suffixes of tensors: n images, k classes, h and w pixels, c channels.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import models, transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images
NUM_CLASSES = 10
MODELS = ("mobilenet_v3_small", "resnet18", "resnet9")
VALIDATION_BATCH = 512
MOMENTUM, WEIGHT_DECAY, SMOOTHING, WARMUP = 0.9, 5e-4, 0.1, 0.25


# --- data -------------------------------------------------------------------------------------------------------------


class Cifar10(Dataset[tuple[Tensor, int]]):
    """Images decoded once into an array, as torchvision.datasets.CIFAR10 keeps them; transformed one by one."""

    def __init__(self, images_nhwc: np.ndarray, labels: list[int], transform: transforms.Compose) -> None:
        self.images_nhwc, self.labels, self.transform = images_nhwc, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images_nhwc[index])), self.labels[index]


def read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, 32, 32, 3) uint8 images and (N,) int64 labels of a file with the columns image{bytes, path} and label."""
    table = pq.read_table(path)
    rows = table["image"].combine_chunks().field("bytes")
    images = [np.asarray(Image.open(io.BytesIO(row.as_py())).convert("RGB")) for row in rows]
    return np.stack(images), table["label"].to_numpy()


def datasets(folder: Path) -> tuple[Cifar10, Cifar10]:
    """Nine tenths of the training images, augmented, and the rest for validation; each class alike in both."""
    images_nhwc, labels_n = read_parquet(folder / "train.parquet")
    train_rows, val_rows = train_test_split(np.arange(len(labels_n)), test_size=0.1, random_state=0, stratify=labels_n)
    normalise = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *normalise])
    train = Cifar10(images_nhwc[train_rows], labels_n[train_rows].tolist(), augment)
    return train, Cifar10(images_nhwc[val_rows], labels_n[val_rows].tolist(), transforms.Compose(normalise))


def loader(dataset: Cifar10, options: argparse.Namespace, *, train: bool) -> DataLoader[tuple[Tensor, int]]:
    """Batches of this process's share, where there are several processes."""
    sampler: DistributedSampler[tuple[Tensor, int]] | None = None
    if dist.is_initialized():
        sampler = DistributedSampler(dataset, shuffle=train, seed=options.seed, drop_last=train)
    return DataLoader(
        dataset,
        batch_size=options.batch_size if train else VALIDATION_BATCH,
        shuffle=train and sampler is None,
        sampler=sampler,
        num_workers=options.loader_workers,
        persistent_workers=options.loader_workers > 0,
        pin_memory=options.device == "cuda",
        drop_last=train,
    )


# --- model ------------------------------------------------------------------------------------------------------------


def build_model(name: str) -> nn.Module:
    """A network for (N, 3, 32, 32) normalised floats, with a stem for small images."""
    if name == "mobilenet_v3_small":
        net = models.mobilenet_v3_small(num_classes=NUM_CLASSES)
        net.features[0][0].stride = (1, 1)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # torchvision's 0.01 is for many more steps
        return net
    if name == "resnet9":
        return ResNet9()
    net = models.resnet18(num_classes=NUM_CLASSES)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


class ResNet9(nn.Module):
    """The network of David Page's "How to Train Your ResNet", with his late changes: pool before norm, CELU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            self.layer(3, 64),
            self.layer(64, 128, nn.MaxPool2d(2)),
            Residual(self.layer(128, 128), self.layer(128, 128)),
            self.layer(128, 256, nn.MaxPool2d(2)),
            self.layer(256, 512, nn.MaxPool2d(2)),
            Residual(self.layer(512, 512), self.layer(512, 512)),
        )
        self.head = nn.Linear(512, NUM_CLASSES, bias=False)

    @staticmethod
    def layer(channels_in: int, channels_out: int, *pool: nn.Module) -> nn.Sequential:
        filters = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        return nn.Sequential(filters, *pool, nn.BatchNorm2d(channels_out), nn.CELU(0.3, inplace=True))

    def forward(self, images_nchw: Tensor) -> Tensor:
        return self.head(self.features(images_nchw).amax((2, 3))) * 0.125


class Residual(nn.Sequential):
    """Layers whose outcome is added to what went in."""

    def forward(self, features_nchw: Tensor) -> Tensor:
        return features_nchw + super().forward(features_nchw)  # type: ignore[no-untyped-call]  # torch's own


def build_optimizer(model: nn.Module, *, peak_lr: float, num_steps: int) -> tuple[torch.optim.SGD, OneCycleLR]:
    """SGD without decay of norms and biases, and its learning rate, to be moved on after each step."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=peak_lr, momentum=MOMENTUM, nesterov=True)
    schedule = OneCycleLR(optimizer, peak_lr, total_steps=num_steps, pct_start=WARMUP, cycle_momentum=False)
    return optimizer, schedule


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass
class Trainer:
    """What an epoch needs. network is model, wrapped where there are several processes."""

    options: argparse.Namespace
    device: torch.device
    model: nn.Module
    network: nn.Module
    optimizer: torch.optim.SGD
    schedule: OneCycleLR
    criterion: nn.Module

    def autocast(self) -> torch.autocast:
        """bf16 on GPUs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def to_device(self, images_nchw: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device."""
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        images_nchw = images_nchw.to(self.device, non_blocking=True, memory_format=layout)
        return images_nchw, labels_n.to(self.device, non_blocking=True)

    def train(self, batches: DataLoader[tuple[Tensor, int]]) -> tuple[float, int]:
        """Mean loss, and the images taken, of all processes."""
        self.network.train()
        total, num_images = torch.zeros((), device=self.device), 0
        for batch in batches:
            images_nchw, labels_n = self.to_device(*batch)
            with self.autocast():
                loss = self.criterion(self.network(images_nchw), labels_n)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach() * len(labels_n)
            num_images += len(labels_n)
        total_loss, num_images = summed(total, num_images)
        return total_loss / num_images, num_images

    @torch.inference_mode()
    def validate(self, batches: DataLoader[tuple[Tensor, int]]) -> tuple[float, float]:
        """Mean loss and accuracy (0-1) over all processes."""
        self.model.eval()
        total, num_hits, num_images = torch.zeros((), device=self.device), torch.zeros((), device=self.device), 0
        for batch in batches:
            images_nchw, labels_n = self.to_device(*batch)
            with self.autocast():
                logits_nk = self.model(images_nchw)
            total += nn.functional.cross_entropy(logits_nk.float(), labels_n, reduction="sum")
            num_hits += (logits_nk.argmax(1) == labels_n).sum()
            num_images += len(labels_n)
        total_loss, num_images = summed(total, num_images)
        return total_loss / num_images, summed(num_hits, 0)[0] / num_images


def summed(total: Tensor, num_images: int) -> tuple[float, int]:
    """Both, summed over all processes."""
    sums_2 = torch.stack([total.double(), torch.tensor(num_images, dtype=torch.float64, device=total.device)])
    if dist.is_initialized():
        dist.all_reduce(sums_2)
    return float(sums_2[0]), int(sums_2[1])


def peak_rss_mib() -> float:
    """The most memory (MiB) this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    """Train, and print a JSON line an epoch."""
    options = command_line().parse_args()
    device = join_processes(options.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(options.seed + rank_and_world()[0])  # each process crops and flips in its own way
    train_set, val_set = datasets(options.data)
    train_batches, val_batches = loader(train_set, options, train=True), loader(val_set, options, train=False)
    trainer = build_trainer(options, device, num_steps=options.epochs * len(train_batches))
    start_up_s = time.time() - psutil.Process().create_time()
    for epoch in range(options.epochs):
        started = time.time()
        if isinstance(train_batches.sampler, DistributedSampler):
            train_batches.sampler.set_epoch(epoch)
        loss, num_images = trainer.train(train_batches)
        val_loss, val_accuracy = trainer.validate(val_batches)
        seconds = time.time() - started
        line = {
            "epoch": epoch + 1, "ended_at": time.time(), "seconds": seconds, "images_per_s": num_images / seconds,
            "train_loss": loss, "val_loss": val_loss, "val_accuracy": val_accuracy,
            "peak_rss_mib": peak_rss_mib(), "start_up_s": start_up_s,
        }  # fmt: skip
        if rank_and_world()[0] == 0:
            print(json.dumps(line), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


def join_processes(device: str) -> torch.device:
    """The device of this process, which joins the others if torchrun started it."""
    if "WORLD_SIZE" not in os.environ:
        return torch.device(device)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", torch.cuda.current_device())


def rank_and_world() -> tuple[int, int]:
    """Which process this is, of how many."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def build_trainer(options: argparse.Namespace, device: torch.device, *, num_steps: int) -> Trainer:
    """A model with its optimiser, ready to train; the learning rate follows the number of processes."""
    model = build_model(options.model).to(device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    network = DistributedDataParallel(model) if dist.is_initialized() else model
    peak_lr = options.lr * options.batch_size * rank_and_world()[1] / 256
    optimizer, schedule = build_optimizer(model, peak_lr=peak_lr, num_steps=num_steps)
    return Trainer(options, device, model, network, optimizer, schedule, nn.CrossEntropyLoss(label_smoothing=SMOOTHING))


def command_line() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.parquet")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128, help="images a process takes at once")
    parser.add_argument("--lr", type=float, default=0.4, help="peak learning rate for 256 images at once")
    parser.add_argument("--loader-workers", type=int, default=2, help="processes that load images, for each process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--channels-last", action="store_true", help="memory layout of images and filters")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
