"""Ray Data as a decoder: chunks go in, decoded images come out in the same order, within the memory that it is given.

Its tasks import this file, and what it imports: neither torch nor scikit-learn, a few hundred MB in each process.
"""

from __future__ import annotations

import gc
import logging
import pickle
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Self

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import DataContext, ExecutionOptions, ExecutionResources, TaskPoolStrategy
from ray.exceptions import RayError, RayTaskError

from rayapp.data.cache import DecodedBatch, DecodedImage, decode_chunks, decode_one, read_ahead
from rayapp.data.chunks import Chunk, Sample, in_groups
from rayapp.data.files import CANNOT_BE_READ
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import DataError
from rayapp.storage import is_remote

# A task decodes so many images at most, or so many bytes at least if there are that many: fewer take longer to be asked
# for than to be decoded. They leave it in a quarter of that, or in so many bytes: larger blocks are not faster.
TASK_IMAGES, TASK_BYTES = 1024, 8 * 2**20
BLOCKS_OF_A_TASK, BLOCK_BYTES = 4, 4 * 2**20
MAX_TASKS = 16
MAX_RETRIES = 5  # of a file that is there but cannot be read: half a minute in all, for buckets have their moments
NODE_LABEL = "ray.io/node-id"  # given by Ray to each node


@dataclass(frozen=True)
class Decoder:
    """How to decode for one consumer. memory_bytes: of the images on their way to it, in Ray's object store.

    num_cpus: CPUs that each of num_tasks asks Ray for. None is asked for where training holds them all: a task that
    waits for a CPU of a worker that waits for images would wait for ever.
    """

    spec: PreprocessSpec
    memory_bytes: int
    num_tasks: int
    num_cpus: int

    @classmethod
    def create(cls, spec: PreprocessSpec, memory_bytes: int, *, num_consumers: int) -> Self:
        """A decoder for one of num_consumers, whose resources Ray has already set aside."""
        store_bytes = int(ray.cluster_resources().get("object_store_memory", 0))
        memory_bytes = min(memory_bytes, store_bytes // (2 * num_consumers))
        free = int(ray.available_resources().get("CPU", 0)) // num_consumers
        fitting = memory_bytes // (2 * min(TASK_BYTES, TASK_IMAGES * image_bytes(spec)))
        return cls(spec, memory_bytes, max(1, min(free, fitting, MAX_TASKS)), 1 if free else 0)

    def runs(self, chunks: Sequence[Chunk]) -> Generator[DecodedBatch]:
        """The images of chunks in order. Raises DataError where a file is gone."""
        tasks = [pickle.dumps(task) for task in in_groups(chunks, self._task_images)]
        dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            partial(_decode, spec=self.spec, at_once=self._at_once),
            batch_size=1,
            compute=TaskPoolStrategy(size=min(self.num_tasks, len(tasks))),
            num_cpus=self.num_cpus,
        )
        self._configure(dataset.context)
        with data_errors():
            for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
                yield DecodedBatch(block["images"], block["labels"], block["problems"].tolist())

    def _configure(self, context: DataContext) -> None:
        """Set the options of one dataset; context is its own."""
        context.execution_options = ExecutionOptions(
            preserve_order=True,
            resource_limits=ExecutionResources.for_limits(object_store_memory=self.memory_bytes // 2),
        )
        context.target_max_block_size = self._at_once * image_bytes(self.spec)
        retry_reads(context)
        if not self.num_cpus:
            # Ray would put a task that asks for no CPU anywhere, also on a head node that is to be left alone
            context.execution_options.label_selector = {NODE_LABEL: ray.get_runtime_context().get_node_id()}

    @property
    def _task_images(self) -> int:
        """Images that a task decodes at most. All tasks that run at a time have half of the memory.

        The images of a task that is not the next one's turn are kept, however many they are (ray 2.60); of those of
        tasks that are done, Ray Data keeps no more than the other half.
        """
        return max(1, min(TASK_IMAGES, self.memory_bytes // (2 * self.num_tasks * image_bytes(self.spec))))

    @property
    def _at_once(self) -> int:
        """Images of a block."""
        return max(1, min(self._task_images // BLOCKS_OF_A_TASK, BLOCK_BYTES // image_bytes(self.spec)))


def retry_reads(context: DataContext) -> None:
    """Set for the dataset that has this context that files which fail are tried again; and that Ray does not chat."""
    context.retried_map_errors, context.max_map_retries = [CANNOT_BE_READ], MAX_RETRIES
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that there are no progress bars
    logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
    for name in ("exceptions", "_internal.execution.streaming_executor_state"):  # print what they raise as well
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)


@contextmanager
def data_errors() -> Iterator[None]:
    """Inside the with block a DataError of a task of Ray Data is one here as well; and an error leaves no actors."""
    try:
        yield
    except RayError as error:
        # Ray Data drops its actors, but the frames it failed in refer to them, and so do cycles (2.60): where nobody
        # makes garbage, as in a process that waits for Ray, they would hold their CPUs for ever
        error.__context__ = error.__traceback__ = None
        gc.collect()
        if isinstance(error, RayTaskError) and isinstance(error.cause, DataError):
            raise DataError(str(error.cause).splitlines()[0]) from error  # Ray Data adds lines of its own
        raise


def image_bytes(spec: PreprocessSpec) -> int:
    """Bytes of a decoded image."""
    return spec.height_px * spec.width_px * 3


def _decode(batch: dict[str, NDArray[Any]], *, spec: PreprocessSpec, at_once: int) -> Iterator[dict[str, NDArray[Any]]]:
    for task in batch["item"]:
        chunks = pickle.loads(task)  # noqa: S301 - of runs(), a moment ago
        for run in decode_chunks(chunks, spec, at_once=at_once):
            problems = np.array(run.problems, dtype=object)
            yield {"images": run.images_nhwc, "labels": run.labels_n, "problems": problems}


def decode_rows(chunks: Sequence[Chunk], spec: PreprocessSpec, *, at_once: int) -> Iterator[dict[str, NDArray[Any]]]:
    """The images of chunks in order, at_once in a block: path, row (-1 where it is a file of its own), error and image.

    error: why there is no image but a black one; "" where there is one.
    """
    items = read_ahead(chunks)
    black_hwc = np.zeros((spec.height_px, spec.width_px, 3), dtype=np.uint8)
    while block := list(islice(items, at_once)):
        pictures = [_decoded_image(spec, item) for item in block]
        yield {
            "path": np.array([item.path for item in block], dtype=object),
            "row": np.array([-1 if item.row is None else item.row for item in block], dtype=np.int64),
            "error": np.array([picture.problem for picture in pictures], dtype=object),
            "image": np.stack([black_hwc if p.pixels_hwc is None else p.pixels_hwc for p in pictures]),
        }


def _decoded_image(spec: PreprocessSpec, item: Sample) -> DecodedImage:
    """The image of item, or why there is none; but a bucket that fails for all images is no matter of this one."""
    try:
        return decode_one(spec, item)
    except DataError as error:
        if is_remote(item.path) and CANNOT_BE_READ in str(error):
            raise
        return DecodedImage(item.name, problem=str(error).split(";")[0])
