"""Explanations: a heat map of what spoke for a class, from the torch weights of the bundle that is served.

torch is imported and the weights are loaded at the first question, and kept for one model only; one question is
answered at a time, in a thread of its own, so that predictions are never behind more than one of them.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rayapp.config.serve import ServeArgs
from rayapp.data.preprocess import open_image
from rayapp.errors import BundleError, RequestError, did_you_mean
from rayapp.serve.replica import LoadedModel

if TYPE_CHECKING:
    from rayapp.vision.explain import Explainer

MAX_WAITING = 8
MAX_CLASS_CHARS = 100  # of a class that is not there: looking for its like takes time
log = logging.getLogger(__name__)


class Explanations:
    """Answers /explain."""

    def __init__(self, args: ServeArgs) -> None:
        self._max_pixels = args.max_image_pixels
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._num_waiting = 0
        self._loaded: tuple[str, Explainer] | None = None  # by digest

    async def explain(self, served: LoadedModel, file: bytes, class_name: str | None) -> bytes:
        """A PNG of the image in file under the heat map of class_name, by default the class that is predicted.

        Raises ImageError, or RequestError: 400 for a class that the model does not know, 501 where torch cannot use its
        weights, 503 where too many wait.
        """
        names = served.class_names
        if class_name is not None and class_name not in names:
            class_name = class_name[:MAX_CLASS_CHARS]
            raise RequestError(f"class '{class_name}' is not one of the model's.{did_you_mean(class_name, names)}")
        if self._num_waiting >= MAX_WAITING:
            raise RequestError(f"{self._num_waiting} explanations wait already; try again", 503)
        index = None if class_name is None else names.index(class_name)
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._explain, served, file, index)
        finally:
            self._num_waiting -= 1

    def _explain(self, served: LoadedModel, file: bytes, index: int | None) -> bytes:
        from rayapp.vision.explain import Explainer, overlay

        if self._loaded is None or self._loaded[0] != served.digest:
            self._loaded = None  # first: never the weights of two models
            bundle, device = served.predictor.bundle, served.predictor.device
            try:
                self._loaded = served.digest, Explainer.load(bundle, device=device)
            except (BundleError, OSError) as error:
                log.error("cannot explain version=%s reason=%s", served.label, error)
                raise RequestError("this model cannot be explained: its weights do not load", 501) from error
        image = open_image(file, max_pixels=self._max_pixels)
        explanation = self._loaded[1].explain(served.spec.from_image(image), index)
        return overlay(image, explanation.heat_hw)
