"""Damaged requests: never a 5xx, always an answer in the contract's shape, and the server is as before afterwards.

A few hundred here, drawn and made small by Hypothesis; benchmarks/mutations.py sends thousands.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.contract.damage import bombs, corpus
from tests.contract.mutations import LAYERS, PREDICT, case, good, numbered
from tests.contract.wire import Answer, Case, Layer, complaint, file_head, form, request, same, send
from tests.support.bundles import tiny_served
from tests.support.images import encoded, picture
from tests.support.serving import client_of

Address = tuple[str, int]
# refused: over 8 bits, no format, numbers as text (Pillow reads 5 MB a second), or decoded before its size is known
REFUSED = {"png-16", "tiff-16", "tiff-F", "tiff-I", "ppm-F", "ppm-16", "pam", "ppm-plain", "ico", "ico-bmp"}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says what it thinks of damaged files
drawn = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with client_of(tiny_served(tmp_path_factory.mktemp("model"))) as client:
        yield client.base_url.host, client.base_url.port or 0


@pytest.fixture(scope="module")
def usual(address: Address) -> bytes:
    """The answer to a good request."""
    answer = send(address, good())
    assert answer
    assert answer.status == 200
    return answer.body


def with_image(data: bytes) -> Case:
    return Case("image", "image", request(b"/predict_image", *form([(file_head(b"image"), data)])))


def survives(address: Address, usual: bytes, sent: Case) -> Answer | None:
    """The answer to a case, once it and the answer to the next good request are as they should be."""
    answer = send(address, sent)
    assert complaint(sent, answer) is None, f"{sent.name}: {sent.data[:2000]!r}"
    after = send(address, good())
    assert after, sent.name
    assert same(after.body, usual), sent.name
    return answer


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
@drawn
@given(rng=st.randoms(use_true_random=False))
def test_damaged_request_gets_its_answer_and_hurts_nobody(address: Address, usual: bytes, layer: Layer, rng: Random):
    survives(address, usual, case(rng, layer))


@pytest.mark.parametrize("kind", sorted(bombs()))
def test_small_file_that_becomes_large_is_answered(address: Address, usual: bytes, kind: str):
    answer = survives(address, usual, with_image(bombs()[kind]))

    assert answer
    if kind in ("pixels", "more-pixels", "ppm", "gif", "jpeg"):
        assert answer.status == 413


@pytest.mark.parametrize("kind", sorted(corpus()))
def test_image_that_is_damaged_elsewhere_is_good_here(address: Address, usual: bytes, kind: str):
    answer = survives(address, usual, with_image(corpus()[kind]))

    assert answer
    assert answer.status == (400 if kind in REFUSED else 200)


def tiff_with(mode: str, tag: int, offset: int, number: int) -> bytes:
    """A TIFF file in whose entry for tag the 16 bits at offset are changed."""
    image = picture(1, mode=mode)
    data = bytearray(encoded(image, "TIFF"))
    (count,) = struct.unpack_from("<H", data, 8)
    (at,) = (at for at in range(10, 10 + 12 * count, 12) if struct.unpack_from("<H", data, at) == (tag,))
    struct.pack_into("<H", data, at + offset, number)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [tiff_with("LA", 273, 2, 16), tiff_with("P", 320, 2, 6)],
    ids=["offset-of-8-bytes", "palette-of-signed-bytes"],
)
def test_numbers_that_are_too_large_for_pillow_are_400(address: Address, usual: bytes, data: bytes):
    """Found by benchmarks/mutations.py: OverflowError, which was 500."""
    answer = survives(address, usual, with_image(data))

    assert answer
    assert answer.status == 400


def test_grey_tiff_with_associated_alpha_is_served(address: Address, usual: bytes):
    """Found by benchmarks/mutations.py: Pillow has no direct way from its mode (La) to RGB, which was 500."""
    data = tiff_with("LA", 338, 8, 1)

    answer = survives(address, usual, with_image(data))

    assert Image.open(io.BytesIO(data)).mode == "La"
    assert answer
    assert answer.status == 200


# --- the requests, and what is said of answers ------------------------------------------------------------------------


def test_numbered_requests_are_always_the_same_and_all_different():
    first = [numbered(7, index) for index in range(200)]

    assert [numbered(7, index) for index in range(200)] == first
    assert len({one.data for one in first}) > 190
    assert {one.layer for one in first} == set(LAYERS)
    assert numbered(8, 0) != first[0]


def answer_of(status: int, body: bytes, *, kind: str = "application/json", endpoint: bool = True) -> Answer:
    headers = {"content-type": kind} | ({"x-bentoml-request-id": "0" * 16} if endpoint else {})
    return Answer(status, headers, body)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "no answer"),
        (answer_of(500, b'{"error": "x"}'), "status 500"),
        (answer_of(503, b"busy", kind="text/plain", endpoint=False), "status 503"),
        (answer_of(400, b"Invalid HTTP request", kind="text/plain", endpoint=False), "endpoint was not asked"),
        (answer_of(400, b"bad", kind="text/plain"), "content type"),
        (answer_of(400, b"{"), "no JSON"),
        (answer_of(400, b'[{"error": "x"}]'), "no error"),
        (answer_of(413, b'{"error": ["x"]}'), "no error"),
        (answer_of(200, b""), "no JSON"),
    ],
)
def test_wrong_answer_is_noticed(answer: Answer | None, words: str):
    assert words in str(complaint(good(), answer))


def test_right_answers_are_none_to_complain_of():
    torn = Case("torn", "http", b"POST", whole=False)

    assert complaint(good(), answer_of(200, b"{}")) is None
    assert complaint(good(), answer_of(400, json.dumps({"error": "x"}).encode())) is None
    assert complaint(torn, None) is None
    assert complaint(torn, answer_of(400, b"Invalid", kind="text/plain", endpoint=False)) is None
    assert complaint(torn, answer_of(500, b"", endpoint=False)) is not None


@pytest.mark.parametrize("path", sorted(PREDICT))
def test_good_request_is_good(address: Address, path: bytes):
    answer = send(address, good(path))

    assert answer
    assert (answer.status, complaint(good(path), answer)) == (200, None)
