"""The pipeline of batch prediction: images go in, rows of predictions come out in the same order (Ray Data).

    CPU, Apple GPU   actors, one per core: read, decode, predict
    NVIDIA GPU       tasks on free CPUs: read, decode ──> actors, one per GPU: predict

Memory: an actor holds its model and one batch of images, decoded, and their files as they are read. Between tasks and
GPUs images lie in Ray's object store, of which those that wait take a quarter; predictions are small.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, ExecutionOptions, TaskPoolStrategy

from rayapp.config.base import Device
from rayapp.config.batch import PredictorsConfig
from rayapp.data.chunks import Chunk, in_groups
from rayapp.data.preprocess import PreprocessSpec
from rayapp.runtime.decode import data_errors, decode_rows, image_bytes, retry_reads
from rayapp.runtime.resources import check_workers, worker_device
from rayapp.vision.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle
from rayapp.vision.predictor import Predictor

Block = dict[str, NDArray[Any]]
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # of the image file, or of the Parquet file that it is a row of
        ("row", pa.int64()),  # of that file, from 0; null for an image file
        ("prediction", pa.string()),  # class name; this and the next three are null where error is not
        ("class_id", pa.int32()),
        ("confidence", pa.float32()),  # 0-1
        ("probabilities", pa.list_(pa.float32())),  # 0-1, in class order
        ("error", pa.string()),  # why the image cannot be decoded, or null
        ("model_version", pa.string()),  # its number, or the run's id where it is not registered
        ("model_digest", pa.string()),  # of the bundle
    ]
)
# Images of a task at most: what is done again when a process is lost, and how often the progress line moves.
TASK_IMAGES, TASKS_OF_A_WORKER = 1024, 4


@dataclass(frozen=True)
class Pipeline:
    """How images are predicted on a cluster. num_decoders: tasks that decode for GPUs, 0 where actors decode."""

    device: str
    num_workers: int
    num_decoders: int
    task_images: int
    batch_size: int

    @classmethod
    def create(cls, config: PredictorsConfig, spec: PreprocessSpec, *, num_images: int, batch_size: int) -> Self:
        """For so many images. Raises ConfigError where the cluster has no room for it."""
        device = worker_device(config.device)
        room = check_workers(config, device, config.num_workers or 1)
        num_workers = min(config.num_workers or room, -(-num_images // batch_size))
        there = ray.cluster_resources()
        num_decoders = int(there.get("CPU", 0)) if device == "cuda" else 0
        task_images = min(TASK_IMAGES, -(-num_images // (TASKS_OF_A_WORKER * num_workers)))
        if num_decoders:
            # what waits for its turn is kept in the store, however much it is (ray 2.60)
            room = int(there.get("object_store_memory", 0)) // 4 // image_bytes(spec)
            task_images = min(task_images, max(batch_size, room // num_decoders))
        # whole batches, so that how many workers there are does not change which images go through the model together
        task_images = -(-task_images // batch_size) * batch_size
        return cls(device, num_workers, num_decoders, task_images, batch_size)

    def tables(self, chunks: Sequence[Chunk], bundle: Bundle, *, model_version: str) -> Generator[pa.Table]:
        """The predictions of the images of chunks in order, as tables of SCHEMA. Raises DataError where a bucket fails.

        The bundle goes to the workers through Ray's store: they need neither MLflow nor the driver's disk.
        """
        files = ray.put({name: (bundle.folder / name).read_bytes() for name in (MANIFEST, WEIGHTS, GRAPH)})
        tasks = [pickle.dumps(task) for task in in_groups(chunks, self.task_images)]
        dataset: ray.data.Dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks))
        if self.num_decoders:
            dataset = dataset.map_batches(
                partial(_decode, spec=bundle.manifest.preprocess, at_once=self.batch_size),
                batch_size=1,
                compute=TaskPoolStrategy(size=min(self.num_decoders, len(tasks))),
                num_cpus=1,
            )
        on_gpu = self.device == "cuda"
        dataset = dataset.map_batches(
            _Predicting if self.num_decoders else _DecodingAndPredicting,
            fn_constructor_kwargs={
                "files": files,
                "device": self.device,
                "batch_size": self.batch_size,
                "model_version": model_version,
            },
            batch_size=self.batch_size if self.num_decoders else 1,
            compute=ActorPoolStrategy(size=self.num_workers),
            num_cpus=0 if on_gpu else 1,
            num_gpus=1 if on_gpu else None,
        )
        dataset.context.execution_options = ExecutionOptions(preserve_order=True)
        if self.num_decoders:
            dataset.context.target_max_block_size = self.batch_size * image_bytes(bundle.manifest.preprocess)
        retry_reads(dataset.context)
        with data_errors():
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def _decode(batch: Block, *, spec: PreprocessSpec, at_once: int) -> Iterator[Block]:
    for task in batch["item"]:
        yield from decode_rows(pickle.loads(task), spec, at_once=at_once)  # noqa: S301 - of tables(), a moment ago


class _Predicting:
    """An actor with a model: blocks of decode_rows() in, tables of SCHEMA out."""

    def __init__(
        self, files: ray.ObjectRef[dict[str, bytes]], *, device: Device, batch_size: int, model_version: str
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
            for name, content in ray.get(files).items():
                (Path(folder) / name).write_bytes(content)
            # the model is in memory afterwards
            self._predictor = Predictor.load(Bundle.open(Path(folder)), device=device, num_threads=1)
        self._model_version, self._batch_size = model_version, batch_size
        self._class_names = pa.array(self._predictor.bundle.manifest.class_names, pa.string())

    def __call__(self, batch: Block) -> Iterator[pa.Table]:
        """One table."""
        yield self._table(batch)

    def _table(self, block: Block) -> pa.Table:
        bad_n = block["error"] != ""
        num_images, num_classes = len(bad_n), len(self._class_names)
        probabilities_nk = np.zeros((num_images, num_classes), dtype=np.float32)
        if not bad_n.all():
            probabilities_nk[~bad_n] = self._predictor.predict(block["image"][~bad_n])
        class_ids = pa.array(probabilities_nk.argmax(axis=1).astype(np.int32), mask=bad_n)
        ends = np.cumsum(np.append(0, np.where(bad_n, 0, num_classes)), dtype=np.int32)
        columns = [
            pa.array(block["path"], pa.string()),
            pa.array(block["row"], mask=block["row"] < 0),
            self._class_names.take(class_ids),
            class_ids,
            pa.array(probabilities_nk.max(axis=1), mask=bad_n),
            pa.ListArray.from_arrays(ends, pa.array(probabilities_nk[~bad_n].ravel()), mask=pa.array(bad_n)),
            pa.array(block["error"], pa.string(), mask=~bad_n),
            pa.repeat(self._model_version, num_images),
            pa.repeat(self._predictor.bundle.digest, num_images),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)


class _DecodingAndPredicting(_Predicting):
    """The same with tasks as input: where the processor decodes and predicts, nothing has to be handed over."""

    def __call__(self, batch: Block) -> Iterator[pa.Table]:
        """A table a batch of images."""
        spec = self._predictor.bundle.manifest.preprocess
        for block in _decode(batch, spec=spec, at_once=self._batch_size):
            yield self._table(block)
