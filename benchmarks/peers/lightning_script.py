"""The recipe of plain.py with Lightning: its data, model and optimiser, Lightning's loop and strategy.

    python -m benchmarks.peers.lightning_script --data FOLDER --processes 2

Needs the peers' environment (make .venv-bench/.installed). Prints one JSON line an epoch.
"""

from __future__ import annotations

import argparse
import json
import time

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from benchmarks.peers import plain


class Classifier(lightning.LightningModule):
    """A network of plain.py with its loss and metrics; Lightning averages them over batches and processes."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options
        self.network = plain.build_model(options.model)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=plain.SMOOTHING)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        images_nchw, labels_n = batch
        loss: Tensor = self.criterion(self.network(images_nchw), labels_n)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels_n))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Loss and accuracy of a batch."""
        images_nchw, labels_n = batch
        logits_nk = self.network(images_nchw)
        metrics = {
            "val_loss": nn.functional.cross_entropy(logits_nk, labels_n),
            "val_accuracy": (logits_nk.argmax(1) == labels_n).float().mean(),
        }
        self.log_dict(metrics, on_epoch=True, sync_dist=True, batch_size=len(labels_n))

    def configure_optimizers(self) -> dict[str, object]:
        """The optimiser of plain.py and its learning rate, which moves on after each step."""
        options, trainer = self.options, self.trainer
        optimizer, schedule = plain.build_optimizer(
            self.network,
            peak_lr=options.lr * options.batch_size * trainer.world_size / 256,
            num_steps=int(trainer.estimated_stepping_batches),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Lines(Callback):
    """Prints a line after each epoch, validation included, of the process with rank 0."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Remember when the epoch began."""
        self.started = time.time()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Print what the epoch was."""
        seconds = time.time() - self.started
        num_images = module.options.batch_size * trainer.world_size * trainer.num_training_batches
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        line = {
            "epoch": trainer.current_epoch + 1, "ended_at": time.time(), "seconds": seconds,
            "images_per_s": num_images / seconds, **metrics, "peak_rss_mib": plain.peak_rss_mib(),
        }  # fmt: skip
        if trainer.is_global_zero:
            print(json.dumps(line), flush=True)


def main() -> None:
    """Train in so many processes."""
    parser = plain.command_line()
    parser.add_argument("--processes", type=int, default=1, help="training processes (DDP), one per GPU")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    lightning.seed_everything(options.seed, verbose=False)
    train_set, val_set = plain.datasets(options.data)
    trainer = lightning.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=options.processes,
        strategy="ddp" if options.processes > 1 else "auto",
        precision="bf16-mixed" if options.device == "cuda" else "32-true",
        benchmark=True,
        max_epochs=options.epochs,
        callbacks=[Lines()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = Classifier(options)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    # Lightning gives each process its share of the images
    trainer.fit(model, plain.loader(train_set, options, train=True), plain.loader(val_set, options, train=False))


if __name__ == "__main__":
    main()
