"""One image, one answer: over HTTP alone or in a batch, by `rayapp predict`, and in evaluate."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from rayapp.config.train import DataConfig
from rayapp.data.datasets import load
from rayapp.predict import Prediction, ask_server, predict_bytes
from rayapp.vision.evaluate import predict_all
from tests.support.bundles import SIDE_PX, tiny_served
from tests.support.images import encoded, picture
from tests.support.serving import client_of

NUM_IMAGES = 500
# (format, file ending, colour modes it can hold)
FORMATS = (
    ("PNG", "png", ("RGB", "RGBA", "L", "P")),
    ("JPEG", "jpg", ("RGB", "L", "CMYK")),
    ("BMP", "bmp", ("RGB", "L", "P")),
    ("WEBP", "webp", ("RGB", "RGBA")),
)


def write_images(folder: Path) -> list[Path]:
    """A folder data set whose test images have mixed formats, colour modes and sizes of 1 to 300 px, in its order."""
    for split, name in (("train", "ant"), ("train", "bee"), ("test", "ant"), ("test", "bee")):
        (folder / split / name).mkdir(parents=True)
    for at in range(20):
        picture(at).save(folder / "train" / ("ant", "bee")[at % 2] / f"{at:02}.png")
    rng = np.random.default_rng(0)
    paths = []
    for at in range(NUM_IMAGES):
        kind, ending, modes = FORMATS[at % len(FORMATS)]
        height, width = (int(side) for side in rng.integers(1, 301, 2))
        image = picture(at, height=height, width=width, mode=str(rng.choice(modes)))
        name = "ant" if at < NUM_IMAGES // 2 else "bee"
        path = folder / "test" / name / f"{at:03}.{ending}"
        path.write_bytes(encoded(image, kind))
        paths.append(path)
    return paths


def table(predictions: list[Prediction]) -> np.ndarray:
    return np.array([list(p["probabilities"].values()) for p in predictions])


def single(client: httpx.Client, data: bytes) -> Prediction:
    answer: Prediction = client.post("/predict_image", files={"image": data}).raise_for_status().json()
    return answer


@pytest.mark.timeout(300)
def test_http_predict_and_evaluate_agree_on_images_of_all_formats_and_sizes(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images")
    files = [path.read_bytes() for path in paths]
    served = tiny_served(tmp_path / "model")

    config = DataConfig(dataset="folder", path=str(tmp_path / "images"), image_px=SIDE_PX)
    evaluated_nk = predict_all(served.predictor, load(config, tmp_path).test, batch_size=256)
    predicted_nk = table(predict_bytes(served.predictor, files, [str(path) for path in paths]))
    with client_of(served) as client:
        singles_nk = table([single(client, data) for data in files])
        batches_nk = table(ask_server(str(client.base_url), files))

    assert evaluated_nk.shape == (NUM_IMAGES, 10)
    assert evaluated_nk.std(axis=0).max() > 0.05  # the answers do differ
    for other_nk in (predicted_nk, singles_nk, batches_nk):
        assert np.abs(other_nk - evaluated_nk).max() <= 1e-5
