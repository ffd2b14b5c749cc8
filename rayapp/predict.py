"""predict: classifies image files with a model of the registry, or by asking a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rayapp.config.commands import PredictSettings
from rayapp.config.env import Home, api_key
from rayapp.errors import DataError, ImageError, RequestError
from rayapp.proxies import NO_PROXY_ADVICE, http_client, through
from rayapp.registry.models import Registry
from rayapp.serve.asgi import prediction
from rayapp.vision.predictor import Predictor

Prediction = dict[str, Any]
BATCH = 64
TIMEOUT_S = 60.0


def predict_files(settings: PredictSettings, home: Home) -> list[Prediction]:
    """A prediction a file, in order, in the shape of the REST contract.

    Raises DataError for a file that cannot be read, ImageError for one that is no image, RequestError where the
    server does not answer or refuses.
    """
    files = [_read(path) for path in settings.images]
    if settings.url:
        return ask_server(settings.url, files, key=api_key())
    registry = Registry(home.tracking_uri)
    predictor = Predictor.load(registry.download(registry.resolve(settings.model), home.bundles))
    return predict_bytes(predictor, files, [str(path) for path in settings.images])


def predict_bytes(predictor: Predictor, files: list[bytes], names: list[str]) -> list[Prediction]:
    """The predictions of encoded images, BATCH at a time, decoded as the bundle says; names are for errors."""
    manifest = predictor.bundle.manifest
    predictions: list[Prediction] = []
    for at in range(0, len(files), BATCH):
        images = []
        for name, data in zip(names[at : at + BATCH], files[at : at + BATCH], strict=True):
            try:
                images.append(manifest.preprocess.decode(data))
            except ImageError as error:
                raise ImageError(f"{name}: {error}", error.status) from error
        probabilities_nk = predictor.predict(np.stack(images))
        predictions += [prediction(row_k, manifest.class_names) for row_k in probabilities_nk]
    return predictions


def ask_server(url: str, files: list[bytes], *, key: str | None = None) -> list[Prediction]:
    """The predictions of a server that keeps the REST contract; key is for one that wants an API key.

    Raises RequestError with the server's own words.
    """
    address = f"{url.rstrip('/')}/predict_batch"
    predictions: list[Prediction] = []
    headers = {"authorization": f"Bearer {key}"} if key else None
    try:
        with http_client(url, timeout=TIMEOUT_S, headers=headers) as client:
            for at in range(0, len(files), BATCH):
                parts = [("images", (f"{n}", data)) for n, data in enumerate(files[at : at + BATCH])]
                answer = client.post(address, files=parts)
                if answer.status_code != httpx.codes.OK:
                    raise RequestError(
                        f"{address} answered {answer.status_code}: {answer.text[:300]}", answer.status_code
                    )
                predictions += answer.json()
    except httpx.HTTPError as error:
        advice = (
            f"see whether the proxy lets it pass, or {NO_PROXY_ADVICE}"
            if through(url)
            else "start a server with: rayapp serve"
        )
        raise RequestError(f"{address} does not answer{through(url)} ({error}); {advice}") from error
    return predictions


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give image files") from error
