"""What clients get for bad input, and when the server cannot (docs/contract.md, 2)."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from httpx import Client, Response
from PIL import Image

from rayapp.data.preprocess import UInt8Array
from rayapp.serve.replica import LoadedModel
from tests.support.bundles import tiny_served, tiny_version
from tests.support.images import encoded, picture
from tests.support.serving import client_of

UNEXPECTED = {"error": "An unexpected error has occurred, please check the server log."}
PNG = encoded(picture(1))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny_served(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(tiny: LoadedModel) -> Iterator[Client]:
    with client_of(tiny) as client:
        yield client


def ask(client: Client, data: bytes, field: str = "image") -> Response:
    return client.post("/predict_image", files={field: ("a.png", data, "image/png")})


def refused(answer: Response, *statuses: int) -> str:
    """The error's text; the shape is that of the contract."""
    assert answer.status_code in (statuses or (400,)), answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert isinstance(body["error"], str)
    assert "Traceback" not in answer.text
    return str(body["error"])


def detail(answer: Response) -> tuple[str, list[str]]:
    """Type and place of a validation error."""
    assert refused(answer, 400) == "1 validation error for Input"
    (item,) = answer.json()["detail"]
    return item["type"], item["loc"]


# --- the form of a request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "field"), [("/predict_image", "image"), ("/predict_batch", "images")])
def test_missing_images_are_said_as_pydantic_does(client: Client, path: str, field: str):
    multipart = {"content-type": "multipart/form-data; boundary=XbX"}
    requests = [
        {},
        {"json": {}},
        {"json": {"input": [[[[0, 0, 0]]]]}},
        {"data": {"foo": "bar"}},
        {"files": {"foo": (None, "bar")}},
        {"files": {"file": ("a.png", PNG)}},  # binary under a wrong name: BentoML answers 500
        {"files": {f"{field}[]": ("a.png", PNG)}},
        {"files": {field.capitalize(): ("a.png", PNG)}},
        {"content": b"--XbX--\r\n", "headers": multipart},
        {"content": b"", "headers": {"content-type": "application/x-www-form-urlencoded"}},
    ]

    for request in requests:
        answer = client.post(path, **request)
        assert detail(answer) == ("missing", [field]), request
        assert answer.json()["detail"][0]["msg"] == "Field required"


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"{bad", "json_invalid"), (b"\xff\xfe", "json_invalid"), (b"null", "model_type"), (b"[]", "model_type"),
     (b'"x"', "model_type"), (b"3", "model_type"), (b"[" * 5000, "json_invalid")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/predict_image", "/predict_batch"])
def test_json_of_the_wrong_form_is_400(client: Client, path: str, body: bytes, kind: str):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})

    assert detail(answer) == (kind, [])


@pytest.mark.parametrize("value", [None, "abc", 3, {}])
def test_images_that_are_no_list_are_400(client: Client, value: object):
    assert detail(client.post("/predict_batch", json={"images": value})) == ("list_type", ["images"])


@pytest.mark.parametrize("value", ["aGk=", "data:image/png;base64,aGk=", "http://127.0.0.1/x.png", 3, None, [[0]]])
def test_images_in_json_are_refused_with_advice(client: Client, value: object):
    assert "multipart/form-data" in refused(client.post("/predict_image", json={"image": value}))


def test_empty_batch_is_400(client: Client):
    refused(client.post("/predict_batch", json={"images": []}))


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "text/plain", None])
def test_raw_image_body_is_refused_with_advice(client: Client, content_type: str | None):
    headers = {"content-type": content_type} if content_type else {}

    answer = client.post("/predict_image", content=PNG, headers=headers)

    assert detail(answer) == ("json_invalid", [])
    assert "multipart/form-data" in answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"abc"),
        ("multipart/form-data; boundary=XbX", b"garbage garbage"),
        ("multipart/form-data; boundary=XbX", b"--XbX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XbX--\r\n"),
        ("multipart/form-data; boundary=XbX", b'--XbX\r\nContent-Disposition: form-data; name="image"; filename="a'),
        ("multipart/form-data; boundary=XbX", b""),
        ("multipart/form-data; boundary=XbX; charset=idna", b'--XbX\r\nContent-Disposition: form-data; name="\xff"\r\n'
         b"\r\nx\r\n--XbX--\r\n"),
        ("multipart/form-data; boundary=" + "X" * 5000, b"--X"),
    ],
)  # fmt: skip
def test_broken_multipart_is_400(client: Client, content_type: str, body: bytes):
    refused(client.post("/predict_image", content=body, headers={"content-type": content_type}))


def test_multipart_cut_before_its_end_is_400(client: Client):
    request = client.build_request("POST", "/predict_image", files={"image": ("a.png", PNG)})
    body = request.read()

    answer = client.post(
        "/predict_image", content=body[:-60], headers={"content-type": request.headers["content-type"]}
    )

    refused(answer)


@pytest.mark.parametrize("path", ["/predict_image", "/predict_batch", "/health", "/get_model_info"])
def test_pickle_is_never_read(client: Client, path: str):
    answer = client.post(path, content=b"\x80\x04.", headers={"content-type": "application/vnd.bentoml+pickle"})

    refused(answer, 415)


def test_url_is_refused_and_not_fetched(client: Client):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"

        refused(client.post("/predict_image", files={"image": (None, url)}))
        refused(client.post("/predict_image", data={"image": url}))
        refused(client.post("/predict_image", json={"image": url}))

        with pytest.raises(TimeoutError):
            trap.accept()


# --- the images -------------------------------------------------------------------------------------------------------


def png_16_bit() -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)))


def tiff_of(dtype: str) -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), 7, dtype=dtype)), "TIFF")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello world",
        b"%PDF-1.7 ...",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0" * 20 + PNG[20:],
        PNG[: len(PNG) // 2],
        encoded(picture(2, height=100, width=100), "JPEG")[:900],
        PNG[:30],
        png_16_bit(),
        tiff_of("int32"),
        tiff_of("float32"),
    ],
    ids=["empty", "text", "pdf", "svg", "header", "half-png", "half-jpeg", "cut", "16-bit", "int32", "float32"],
)
def test_what_is_no_8_bit_image_is_400_alone_and_in_a_batch(client: Client, data: bytes):
    refused(ask(client, data))
    files = [("images", ("a", PNG)), ("images", ("b", data)), ("images", ("c", PNG))]

    message = refused(client.post("/predict_batch", files=files))

    assert message.startswith("image 2 of 3: ")
    assert ask(client, PNG).status_code == 200


@pytest.mark.parametrize("side_px", [11_000, 20_000])  # below and above the size at which Pillow itself refuses
def test_decompression_bomb_is_413(client: Client, side_px: int):
    bomb = encoded(Image.new("1", (side_px, side_px)))

    assert len(bomb) < 100_000
    assert "100000000" in refused(ask(client, bomb), 413)
    assert ask(client, PNG).status_code == 200


# --- limits -----------------------------------------------------------------------------------------------------------


def test_image_with_too_many_pixels_is_413(tiny: LoadedModel):
    with client_of(tiny, max_image_pixels=1000) as client:
        assert ask(client, encoded(picture(1, height=20, width=50))).status_code == 200
        refused(ask(client, encoded(picture(1, height=20, width=51))), 413)


def test_too_many_images_are_413(client: Client, tiny: LoadedModel):
    dot = encoded(Image.new("RGB", (1, 1)))

    refused(client.post("/predict_batch", files=[("images", ("a", dot))] * 1001), 413)
    refused(client.post("/predict_batch", files=[("images", ("a", dot))] * 1100), 413)
    with client_of(tiny, max_images=3) as narrow:
        assert narrow.post("/predict_batch", files=[("images", ("a", dot))] * 3).status_code == 200
        refused(narrow.post("/predict_batch", files=[("images", ("a", dot))] * 4), 413)


def test_too_many_text_fields_are_413(client: Client):
    refused(client.post("/predict_image", files=[(f"x{n}", (None, "y")) for n in range(1001)]), 413)


def test_large_body_is_413_with_or_without_its_length(tiny: LoadedModel):
    body = b"x" * 5000
    with client_of(tiny, max_body_bytes=4096) as client:
        refused(client.post("/predict_image", content=body), 413)
        refused(client.post("/predict_image", content=iter([body[:2000], body[2000:4000], body[4000:]])), 413)
        refused(ask(client, body), 413)
        assert ask(client, PNG[:4] + b"x").status_code == 400


def test_long_json_is_refused_unread(client: Client):
    assert "multipart" in refused(client.post("/predict_image", json={"image": "A" * 2**21}))


class _Slow:
    """A predictor that answers when it is told to."""

    def __init__(self, tiny: LoadedModel) -> None:
        self.bundle, self.device = tiny.predictor.bundle, "cpu"
        self.go_on, self.began = threading.Event(), threading.Event()
        self._predict = tiny.predictor.predict

    def predict(self, images_nhwc: UInt8Array) -> Any:
        self.began.set()
        self.go_on.wait(20)
        return self._predict(images_nhwc)


@pytest.fixture
def slow(tiny: LoadedModel) -> Iterator[_Slow]:
    slow = _Slow(tiny)
    yield slow
    slow.go_on.set()


def as_served(predictor: Any) -> LoadedModel:
    return LoadedModel(predictor, tiny_version(), {"params": {}, "metrics": {}, "tags": {}})


def test_slow_answer_is_504_in_the_contracts_words(slow: _Slow):
    with client_of(as_served(slow), timeout_s=0.3) as client:
        answer = ask(client, PNG)
        slow.go_on.set()
        again = ask(client, PNG)

    assert refused(answer, 504) == "Not able to process the request in 0.3 seconds"
    assert again.status_code == 200


def test_full_queue_is_503_and_what_waits_is_answered(slow: _Slow):
    with client_of(as_served(slow), max_queue=3, max_batch=1) as client, ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(ask, client, PNG) for _ in range(3)]
        _until(lambda: "rayapp_queued_images 3.0" in client.get("/metrics").text)

        answer = ask(client, PNG)
        slow.go_on.set()

        assert "busy" in refused(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert [one.result().status_code for one in waiting] == [200, 200, 200]
        assert ask(client, PNG).status_code == 200


def test_batch_larger_than_the_queue_is_served_when_nothing_waits(tiny: LoadedModel):
    with client_of(tiny, max_queue=2) as client:
        assert client.post("/predict_batch", files=[("images", ("a", PNG))] * 5).status_code == 200


def test_fault_of_ours_is_500_that_tells_the_log_alone(tiny: LoadedModel, caplog: pytest.LogCaptureFixture):
    class Broken:
        bundle, device = tiny.predictor.bundle, "cpu"

        def predict(self, images_nhwc: UInt8Array) -> Any:
            raise RuntimeError("secret path /etc/x")

    with client_of(as_served(Broken())) as client, caplog.at_level(logging.ERROR, "rayapp"):
        answer = ask(client, PNG)

    assert answer.status_code == 500
    assert answer.json() == UNEXPECTED
    assert answer.headers["server"] == "BentoML Service/VisionClassifier"
    assert "secret path" in caplog.text
    assert "path=/predict_image" in caplog.text


def test_client_that_leaves_takes_its_image_out_of_the_queue(slow: _Slow):
    """A request that has timed out must not be computed: under overload that would be all that is computed."""
    seen: list[int] = []
    predict = slow.predict

    def counted(images_nhwc: Any) -> Any:
        seen.append(len(images_nhwc))
        return predict(images_nhwc)

    slow.predict = counted  # type: ignore[method-assign]
    with client_of(as_served(slow), timeout_s=0.5, max_batch=1) as client, ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(ask, client, PNG) for _ in range(3)]
        assert [one.result().status_code for one in answers] == [504] * 3
        slow.go_on.set()
        assert ask(client, PNG).status_code == 200

    assert seen == [1, 1]  # the one that was being computed, and the last


# --- routing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/predict_image", "/predict_batch", "/health", "/get_model_info"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_wrong_method_is_405_in_plain_text(client: Client, path: str, method: str):
    answer = client.request(method, path)

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.headers["content-type"].startswith("text/plain")
    if method != "HEAD":
        assert answer.text == "Method Not Allowed"


@pytest.mark.parametrize("path", ["/no/such/route", "/predict", "/docs", "/static_content/x", "/predict_image/x"])
def test_unknown_route_is_404_in_plain_text(client: Client, path: str):
    for method in ("GET", "POST"):
        answer = client.request(method, path)
        assert (answer.status_code, answer.text) == (404, "Not Found")
        assert answer.headers["content-type"].startswith("text/plain")


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
