"""What clients of the replaced service can rely on: requests that are served (docs/contract.md, 1)."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Client, Response
from PIL import Image

from rayapp.serve.asgi import prediction
from tests.support.bundles import CLASSES, SIDE_PX, tiny_served
from tests.support.images import encoded, picture
from tests.support.serving import client_of

HEALTH = {"status": "healthy", "service": "mlflow_vision_classifier"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client_of(tiny_served(tmp_path_factory.mktemp("model"))) as client:
        yield client


def ask(client: Client, data: bytes, kind: str | None = "image/png", name: str = "a.png") -> Response:
    """The answer to one image, as requests and httpx send it."""
    part: Any = (name, data, kind) if kind else (name, data)
    return client.post("/predict_image", files={"image": part})


def served(answer: Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    return body


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool(np.allclose(list(a["probabilities"].values()), list(b["probabilities"].values()), atol=1e-6))


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"XbX") -> bytes:
    """A multipart body of (head, content) parts."""
    return b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, *part) for part in parts) + b"--%s--\r\n" % boundary


def post_form(client: Client, body: bytes, content_type: str = "multipart/form-data; boundary=XbX") -> Response:
    return client.post("/predict_image", content=body, headers={"content-type": content_type})


# --- predict_image ----------------------------------------------------------------------------------------------------


def test_prediction_has_the_shape_of_the_contract(client: Client):
    body = served(ask(client, encoded(picture(1))))

    assert list(body) == ["predicted_class", "predicted_index", "confidence", "probabilities"]
    shares = body["probabilities"]
    assert list(shares) == list(CLASSES)
    assert all(type(share) is float and 0 <= share <= 1 for share in shares.values())
    assert abs(sum(shares.values()) - 1) < 1e-5
    assert body["confidence"] == max(shares.values()) == shares[body["predicted_class"]]
    assert CLASSES[body["predicted_index"]] == body["predicted_class"]


def test_different_images_get_different_answers(client: Client):
    a, b = (served(ask(client, encoded(picture(seed)))) for seed in (1, 2))

    assert not same(a, b)


def test_numbers_are_not_rounded_on_their_way():
    row_k = np.array([0.1, 0.7, 0.2], dtype=np.float32)

    assert list(prediction(row_k, ("a", "b", "c"))["probabilities"].values()) == [float(share) for share in row_k]


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP", "PNG"])
@pytest.mark.parametrize("labelled", [True, False])
def test_lossless_formats_agree(client: Client, kind: str, labelled: bool):
    image = picture(4)
    options = {"lossless": True} if kind == "WEBP" else {}

    answer = ask(client, encoded(image, kind, **options), f"image/{kind.lower()}" if labelled else None)

    assert same(served(answer), served(ask(client, encoded(image))))


@pytest.mark.parametrize(
    "label", [None, "image/png", "image/jpeg", "image/jpg", "image/*", "IMAGE/PNG", "text/plain", "application/pdf"]
)
def test_content_is_sniffed_whatever_the_label_says(client: Client, label: str | None):
    data = encoded(picture(5))

    assert same(served(ask(client, data, label)), served(ask(client, data)))


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "C:\\x.png", "ünï©ode.png", "a;b.png", "http://127.0.0.1/x.png"]
)
def test_file_names_mean_nothing(client: Client, name: str):
    data = encoded(picture(6))
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"'.encode()

    assert same(served(post_form(client, form((head, data)))), served(ask(client, data)))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_served_as_their_conversion_to_rgb(client: Client, mode: str):
    """docs/faults.md, 48: these were 500."""
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    data = encoded(picture(7, mode=mode), kind)
    converted = encoded(Image.open(io.BytesIO(data)).convert("RGB"))

    assert same(served(ask(client, data)), served(ask(client, converted)))


def test_cmyk_jpeg_is_served(client: Client):
    data = encoded(picture(7, mode="CMYK"), "JPEG")
    converted = encoded(Image.open(io.BytesIO(data)).convert("RGB"))

    assert same(served(ask(client, data)), served(ask(client, converted)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_taken(client: Client, kind: str):
    first, second = picture(8), picture(9)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], duration=100, **options)
    alone = encoded(Image.open(io.BytesIO(data)).convert("RGB"))

    assert Image.open(io.BytesIO(data)).n_frames == 2  # type: ignore[attr-defined]
    assert same(served(ask(client, data)), served(ask(client, alone)))


def test_exif_orientation_is_ignored(client: Client):
    image = picture(10, height=40, width=60)
    exif = Image.Exif()
    exif[0x0112] = 6

    turned = encoded(image, "JPEG", exif=exif, quality=95)

    assert same(served(ask(client, turned)), served(ask(client, encoded(image, "JPEG", quality=95))))


def test_images_are_resized_bilinearly_without_their_aspect_ratio(client: Client):
    image = picture(11, height=50, width=90)
    small = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)

    assert same(served(ask(client, encoded(image))), served(ask(client, encoded(small))))


@pytest.mark.parametrize("size", [(1, 1), (2, 4000), (4000, 2), (2000, 1500)])
def test_extreme_sizes_are_served(client: Client, size: tuple[int, int]):
    served(ask(client, encoded(Image.new("RGB", size, (9, 200, 30)))))


def test_large_upload_is_served(client: Client):
    data = encoded(picture(12, height=2000, width=2000), compress_level=0)

    assert len(data) > 11_000_000
    served(ask(client, data))


def test_first_of_several_images_is_used(client: Client):
    first, second = encoded(picture(13)), encoded(picture(14))

    answer = client.post("/predict_image", files=[("image", ("1.png", first)), ("image", ("2.png", second))])

    assert same(served(answer), served(ask(client, first)))


def test_other_parts_are_ignored(client: Client):
    data = encoded(picture(15))
    files = [("other", ("x.bin", bytes(range(256)))), ("image", ("a.png", data)), ("z", ("y.bin", b"\xff\xfe"))]

    answer = client.post("/predict_image?image=x", files=files, data={"text": "before", "image2": "no"})

    assert same(served(answer), served(ask(client, data)))


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        (b'Content-Type: image/png\r\nContent-Disposition: form-data; name="image"; filename="a"', "; boundary=XbX"),
        (b'content-disposition: form-data; filename="a"; name="image"', '; boundary="XbX"'),
        (b"Content-Disposition: form-data; name=image; filename=a", "; boundary=XbX; charset=utf-8"),
        (b'Content-Disposition: form-data; name="image"', "; boundary=XbX"),  # no file name: bytes all the same
    ],
)
def test_multipart_may_be_written_in_many_ways(client: Client, head: bytes, content_type: str):
    data = encoded(picture(16))

    for media in ("multipart/form-data", "Multipart/Form-Data"):
        answer = post_form(client, form((head, data)), media + content_type)
        assert same(served(answer), served(ask(client, data)))


@pytest.mark.parametrize("kind", ["BMP", "PNG", "JPEG", "PPM"])
def test_part_without_file_name_keeps_its_bytes(client: Client, kind: str):
    """starlette reads such a part as text; what is valid UTF-8 and what is not must both come back as it was."""
    data = encoded(Image.new("RGB", (8, 8), (65, 66, 67)), kind)
    head = b'Content-Disposition: form-data; name="image"'

    assert same(served(post_form(client, form((head, data)))), served(ask(client, data, None)))


def test_chunked_upload_is_served(client: Client):
    body = form((b'Content-Disposition: form-data; name="image"; filename="a"', encoded(picture(17))))
    chunks = (body[at : at + 100] for at in range(0, len(body), 100))

    answer = client.post(
        "/predict_image", content=chunks, headers={"content-type": "multipart/form-data; boundary=XbX"}
    )

    assert "content-length" not in answer.request.headers
    served(answer)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_old_http_and_expect_continue_work(client: Client, version: str):
    body = form((b'Content-Disposition: form-data; name="image"; filename="a"', encoded(picture(18))))
    head = f"POST /predict_image HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=XbX\r\n"
    address = (client.base_url.host, client.base_url.port or 0)

    with socket.create_connection(address, timeout=20) as connection, connection.makefile("rb") as answer:
        if version == "1.1":
            connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
            assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert answer.readline() == b"\r\n"
            connection.sendall(body)
        else:
            connection.sendall(f"{head}\r\n".encode() + body)
        assert b" 200 " in answer.readline()
        assert b"predicted_class" in answer.read()


# --- predict_batch ----------------------------------------------------------------------------------------------------


def ask_batch(client: Client, files: list[bytes]) -> Response:
    return client.post("/predict_batch", files=[("images", (f"{n}", data)) for n, data in enumerate(files)])


@pytest.mark.parametrize("count", [1, 5, 33, 100])
def test_batch_is_a_bare_list_in_order_equal_to_singles(client: Client, count: int):
    files = [encoded(picture(seed % 7, width=20 + seed % 5)) for seed in range(count)]

    answer = ask_batch(client, files)

    assert answer.status_code == 200
    body = answer.json()
    assert isinstance(body, list)
    assert len(body) == count
    singles = {data: served(ask(client, data)) for data in set(files)}
    assert all(same(one, singles[data]) for one, data in zip(body, files, strict=True))


def test_batch_of_a_thousand_is_served(client: Client):
    answer = ask_batch(client, [encoded(Image.new("RGB", (1, 1)))] * 1000)

    assert answer.status_code == 200
    assert len(answer.json()) == 1000


# --- health, info, built-ins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", None),
        (b"", "application/json"),
        (b"{}", "application/json"),
        (b'{"x": 1}', "application/json; charset=utf-8"),
        (b"{}", "application/x-www-form-urlencoded"),
    ],
)
def test_health_takes_any_body(client: Client, body: bytes, content_type: str | None):
    headers = {"content-type": content_type} if content_type else {}

    assert served(client.post("/health", content=body, headers=headers)) == HEALTH


def test_model_info_has_four_keys_and_does_not_change(client: Client):
    first = served(client.post("/get_model_info", json={}))

    assert list(first) == ["model_metadata", "device", "classes", "num_classes"]
    assert first["classes"] == list(CLASSES)
    assert first["num_classes"] == len(CLASSES)
    assert first["device"] == "cpu"
    about = first["model_metadata"]
    assert (about["name"], about["version"], about["alias"], about["aliases"]) == (
        "vision",
        "1",
        "champion",
        ["champion"],
    )
    assert served(client.post("/get_model_info")) == first


def test_metric_that_is_no_number_is_null(client: Client):
    assert served(client.post("/get_model_info"))["model_metadata"]["metrics"] == {
        "val_accuracy": 0.5,
        "val_loss": None,
    }


def test_images_are_counted_by_the_model_that_answered(tmp_path: Path):
    with client_of(tiny_served(tmp_path)) as client:
        digest = ask(client, encoded(picture())).headers["x-model-digest"]
        client.post("/predict_batch", files=[("images", ("a", encoded(picture(n)))) for n in range(3)])
        ask(client, b"no image")

        line = f'rayapp_predictions_total{{model_digest="{digest}",model_version="1"}} 4.0'
        assert line in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_probes_are_blank(client: Client, path: str):
    answer = client.get(path)

    assert (answer.status_code, answer.text) == (200, "\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.head(path).status_code == 200
    assert client.post(path).status_code == 405


def test_page_needs_nothing_from_elsewhere(client: Client):
    answer = client.get("/")

    assert answer.headers["content-type"].startswith("text/html")
    assert "predict_image" in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert 'src="' not in answer.text


def test_endpoints_carry_bentomls_headers_and_predictions_their_model(client: Client):
    answers = [client.post("/health"), ask(client, encoded(picture())), ask(client, b"no image")]

    ids = {answer.headers["x-bentoml-request-id"] for answer in answers}
    assert len(ids) == 3
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in ids)
    assert {answer.headers["server"] for answer in answers} == {"BentoML Service/VisionClassifier"}
    assert answers[1].headers["x-model-version"] == "1"
    digest = client.post("/get_model_info").json()["model_metadata"]["bundle_digest"]
    assert answers[1].headers["x-model-digest"] == digest
    assert "server" not in client.get("/nowhere").headers


@pytest.mark.parametrize("path", ["/predict_image", "/health", "/livez"])
def test_trailing_slash_is_redirected_with_its_method(client: Client, path: str):
    answer = client.request("GET" if path == "/livez" else "POST", f"{path}/")

    assert answer.status_code == 307
    assert answer.headers["location"].endswith(path)
