"""POST /explain: a picture of what spoke for a class, made by the weights of the model that answers this client."""

from __future__ import annotations

import gc
import hashlib
import io
import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from httpx import Client, Response
from PIL import Image
from safetensors.torch import save_file

from rayapp.data.preprocess import open_image
from rayapp.serve import explain as serve_explain
from rayapp.serve.replica import LoadedModel
from rayapp.vision.bundle import MANIFEST, WEIGHTS, Bundle, file_digest
from rayapp.vision.explain import Explainer, overlay
from rayapp.vision.models import build_model
from rayapp.vision.predictor import Predictor
from tests.support.bundles import CLASSES, SIDE_PX, tiny_version, write_tiny_bundle
from tests.support.images import encoded, picture
from tests.support.serving import model, pair_of_clients, serving, version
from tests.support.wait import eventually

PNG = encoded(picture(3))


def explainable(folder: Path, number: int) -> LoadedModel:
    """A model with the weights of an untrained network. Its graph is the tiny one: an export would take seconds."""
    bundle = write_tiny_bundle(folder / str(number), seed=number)
    torch.manual_seed(number)
    manifest = bundle.manifest
    network = build_model(
        manifest.model, num_classes=len(CLASSES), image_px=SIDE_PX, mean=manifest.mean, std=manifest.std
    )
    with torch.no_grad():
        network.train()(torch.randint(0, 256, (16, SIDE_PX, SIDE_PX, 3), dtype=torch.uint8))  # fills the norms
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, bundle.folder / WEIGHTS)
    files = {name: file_digest(bundle.folder / name) for name in manifest.files}
    (bundle.folder / MANIFEST).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    alias = "champion" if number == 1 else "challenger"
    bundle = Bundle.open(bundle.folder)
    return LoadedModel(Predictor.load(bundle, device="cpu"), tiny_version(number, alias=alias), {})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    folder = tmp_path_factory.mktemp("explainable")
    return explainable(folder, 1), explainable(folder, 2)


@pytest.fixture(scope="module")
def client(models: tuple[LoadedModel, LoadedModel]) -> Iterator[Client]:
    with serving(models[0]) as (client, _):
        yield client


def explain(client: Client, data: bytes = PNG, class_name: str | None = None, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    fields = {} if class_name is None else {"class": class_name}
    return client.post("/explain", files={"image": ("a.png", data)}, data=fields, headers=named)


def expected(served: LoadedModel, data: bytes = PNG, class_name: str | None = None) -> tuple[bytes, str]:
    """The picture as the bundle's own weights make it, and the class that it is about."""
    explainer = Explainer.load(served.predictor.bundle)
    index = None if class_name is None else served.class_names.index(class_name)
    explanation = explainer.explain(served.spec.decode(data), index)
    return overlay(open_image(data), explanation.heat_hw), served.class_names[explanation.index]


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image).astype(int)


def refused(answer: Response, status: int) -> str:
    """The sentence of an answer in the contract's shape of errors."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    return str(answer.json()["error"])


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_answer_is_a_picture_of_the_predicted_class(client: Client, models: tuple[LoadedModel, LoadedModel]) -> None:
    answer = explain(client)

    png, _ = expected(models[0])
    assert version(answer) == "1"
    assert answer.headers["x-model-digest"] == models[0].digest
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["server"] == "BentoML Service/VisionClassifier"
    assert pixels(answer.content).shape == (224, 224, 3)
    assert np.abs(pixels(answer.content) - pixels(png)).max() <= 1


def test_class_in_the_form_changes_the_picture(client: Client, models: tuple[LoadedModel, LoadedModel]) -> None:
    pictures = {name: pixels(explain(client, class_name=name).content) for name in CLASSES[:4]}

    for name, picture_ in pictures.items():
        assert np.abs(picture_ - pixels(expected(models[0], class_name=name)[0])).max() <= 1
    assert len({picture_.tobytes() for picture_ in pictures.values()}) == 4
    predicted = expected(models[0])[1]
    assert explain(client, class_name=predicted).content == explain(client).content


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(1, mode="RGBA")),
        encoded(picture(1, mode="L"), "JPEG"),
        encoded(picture(1, height=40, width=300), "WEBP"),
        encoded(picture(1, mode="CMYK"), "TIFF"),
    ],
    ids=["alpha", "grey", "wide", "cmyk"],
)
def test_every_image_that_is_predicted_is_explained(client: Client, data: bytes) -> None:
    assert client.post("/predict_image", files={"image": data}).status_code == 200
    answer = explain(client, data)

    assert version(answer) == "1"
    assert 224 <= max(pixels(answer.content).shape) <= 512


def test_model_that_answers_a_client_explains_to_it(models: tuple[LoadedModel, LoadedModel]) -> None:
    with serving(*models, canary={"fraction": 0.5}) as (client, _):
        for name, served in zip(pair_of_clients(client), models, strict=True):
            answer = explain(client, x_client_id=name)
            assert version(answer) == served.label
            assert np.abs(pixels(answer.content) - pixels(expected(served)[0])).max() <= 1


def test_exchanged_model_explains_no_more_and_is_let_go_of(
    models: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    old = explainable(tmp_path, 3)
    gone = weakref.ref(old.predictor)
    with serving(old) as (client, replica):
        assert version(explain(client)) == "3"
        replica.swap(models[1])
        del old
        answer = explain(client)
        assert version(answer) == "2"
        assert np.abs(pixels(answer.content) - pixels(expected(models[1])[0])).max() <= 1
        assert eventually(lambda: gc.collect() >= 0 and gone() is None)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_unknown_class_is_refused_with_the_nearest(client: Client) -> None:
    sentence = refused(explain(client, class_name="beee"), 400)

    assert "'beee'" in sentence
    assert "Did you mean 'bee'?" in sentence


def test_class_like_no_other_is_refused_with_all(client: Client) -> None:
    assert all(name in refused(explain(client, class_name="submarine"), 400) for name in CLASSES)


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", PNG[:300], encoded(Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)))],
    ids=["empty", "text", "cut", "16-bit"],
)
def test_bad_image_is_refused_as_in_a_prediction(client: Client, data: bytes) -> None:
    sentence = refused(explain(client, data), 400)

    assert sentence == refused(client.post("/predict_image", files={"image": ("a.png", data)}), 400)


def test_image_beyond_the_limit_is_413(models: tuple[LoadedModel, LoadedModel]) -> None:
    with serving(models[0], max_image_pixels=1000) as (client, _):
        assert "more than the limit of 1000" in refused(explain(client), 413)


@pytest.mark.parametrize(
    "request_", [{}, {"json": {}}, {"files": {"images": PNG}}, {"data": {"class": "bee"}}], ids=str
)
def test_missing_image_is_said_as_pydantic_does(client: Client, request_: dict[str, Any]) -> None:
    answer = client.post("/explain", **request_)

    assert refused(answer, 400) == "1 validation error for Input"
    (item,) = answer.json()["detail"]
    assert (item["type"], item["loc"], item["msg"]) == ("missing", ["image"], "Field required")


def test_other_methods_are_405(client: Client) -> None:
    answer = client.get("/explain")

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_key_is_needed_where_keys_are_on(models: tuple[LoadedModel, LoadedModel], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"secret").hexdigest() + "\n", encoding="utf-8")
    with serving(models[0], api_keys=keys) as (client, _):
        refused(explain(client), 401)
        refused(explain(client, authorization="Bearer wrong"), 403)
        assert version(explain(client, authorization="Bearer secret")) == "1"


def test_weights_that_do_not_load_are_501_and_predictions_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(model(tmp_path, 1)) as (client, _), caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert "cannot be explained" in refused(explain(client), 501)
        assert version(client.post("/predict_image", files={"image": PNG})) == "1"

    assert "cannot explain version=1" in caplog.text
    assert "Traceback" not in caplog.text


def test_weights_that_are_gone_are_501(tmp_path: Path) -> None:
    served = explainable(tmp_path, 1)
    (served.predictor.bundle.folder / WEIGHTS).unlink()
    with serving(served) as (client, _):
        refused(explain(client), 501)


# --- many at once -----------------------------------------------------------------------------------------------------


def test_too_many_wait_no_longer_and_predictions_are_not_held_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> bytes:
        entered.set()
        assert go_on.wait(30)
        return overlay(*args)

    monkeypatch.setattr("rayapp.vision.explain.overlay", slow)
    monkeypatch.setattr(serve_explain, "MAX_WAITING", 2)
    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(explain, client) for _ in range(6)]
        assert entered.wait(30)
        assert eventually(lambda: sum(one.done() for one in asked) == 4)
        assert version(client.post("/predict_image", files={"image": PNG})) == "1"
        go_on.set()
        answers = [one.result() for one in asked]

    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503, 503]
    busy = [answer for answer in answers if answer.status_code == 503]
    assert {answer.headers["retry-after"] for answer in busy} == {"1"}
    assert all("try again" in refused(answer, 503) for answer in busy)
    assert version(explain(client)) == "1"  # there is room again
