"""Pictures that the benchmarks of serving post, and the answers that are right."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks.servers import Server
from rayapp.errors import RayAppError
from rayapp.vision.bundle import Bundle
from rayapp.vision.predictor import Predictor

TOLERANCE = 1e-3  # largest difference of a probability between two servers


def picture(seed: int) -> bytes:
    """A 32x32 PNG of a coarse pattern with a little noise: about 2 kB, as small photos have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
    noise = rng.integers(-8, 9, (32, 32, 3))
    pixels = np.clip(np.asarray(coarse, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def expected(bundle: Path, images: Sequence[bytes]) -> list[dict[str, float]]:
    """Class -> probability of each image, by the bundle itself."""
    predictor = Predictor.load(Bundle.open(bundle), device="cpu")
    manifest = predictor.bundle.manifest
    rows_nk = predictor.predict(np.stack([manifest.preprocess.decode(image) for image in images]))
    return [dict(zip(manifest.class_names, map(float, row_k), strict=True)) for row_k in rows_nk]


def check_answers(name: str, server: Server, answers: Sequence[tuple[bytes, dict[str, float]]]) -> None:
    """Raises RayAppError where a server does not say what the bundle says: then it is not the same model."""
    for image, wanted in answers:
        answer = httpx.post(f"{server.url}/predict_image", files={"image": ("a.png", image, "image/png")}, timeout=30)
        if answer.status_code != 200:
            raise RayAppError(f"{name} answers {answer.status_code} to an image; see {server.log}")
        said = answer.json()
        off = max(abs(said["probabilities"][label] - value) for label, value in wanted.items())
        if off > TOLERANCE or said["predicted_class"] != max(wanted, key=wanted.__getitem__):
            raise RayAppError(
                f"{name} answers {said['predicted_class']} with probabilities that differ by {off:.2g} from"
                f" the bundle's (allowed: {TOLERANCE}); give --bundle the export of --bento-service's model"
            )
