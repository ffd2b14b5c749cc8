"""Forms: bodies cut into parts as RFC 2046 and 7578 say and as another parser does, and refused where damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message

from rayapp.errors import RequestError
from rayapp.serve import multipart
from rayapp.serve.messages import ClientGone, Headers, MemoryBudget
from rayapp.serve.messages import Request as OurRequest
from tests.support.serving import quick_args

ARGS = quick_args()
Part = tuple[bytes, bytes]  # head, content


def named(name: bytes = b"image", content: bytes = b"x", more: bytes = b"") -> Part:
    return b'Content-Disposition: form-data; name="%s"%s' % (name, more), content


def body_of(*parts: Part, boundary: bytes = b"XbX") -> bytes:
    """A well-formed body."""
    return b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, *part) for part in parts) + b"--%s--\r\n" % boundary


def parts(body: bytes, boundary: bytes = b"XbX") -> list[tuple[bytes, bytes]]:
    return list(multipart.parts(body, boundary))


def content_type(boundary: bytes = b"XbX") -> Headers:
    return {b"content-type": b"multipart/form-data; boundary=" + boundary}


# --- parts ------------------------------------------------------------------------------------------------------------


def test_parts_come_in_order_with_their_names_and_contents():
    body = body_of(named(b"a", b"1"), named(b"b", b"2\r\n"), named(b"a", b"\r\n3"))

    assert parts(body) == [(b"a", b"1"), (b"b", b"2\r\n"), (b"a", b"\r\n3")]


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n" + body_of(named()),
        b"This is a multi-part message.\r\n\r\n" + body_of(named()),
        body_of(named())[:-2],
        body_of(named()) + b"epilogue\r\n--XbX\r\nnot a part",
        body_of(named())[:-2] + b"  \r\n",
        body_of(named()).replace(b"--XbX\r\n", b"--XbX \t\r\n"),
    ],
    ids=["blank line", "preamble", "no last line end", "epilogue", "blanks at the end", "blanks after a boundary"],
)
def test_what_surrounds_the_parts_is_no_part(body: bytes):
    assert parts(body) == [(b"image", b"x")]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"--",
        b"\r\n--",
        b"\r\n--XbY",
        b"--Xb",
        b"\n--XbX",
        b"\r--XbX\r\n",
        b" --XbX--",
        b"\r\n-XbX",
        b"\r\nXbX--\r\n",
        bytes(range(256)) * 20,
        b"Content-Disposition: form-data; name=other\r\n\r\nx",
    ],
    ids=repr,
)
def test_content_is_not_changed(content: bytes):
    assert parts(body_of(named(content=content), named(b"after"))) == [(b"image", content), (b"after", b"x")]


def test_content_may_hold_a_form_of_another_boundary():
    inner = body_of(named(b"inner", b"1"), boundary=b"inner")

    assert parts(body_of(named(content=inner))) == [(b"image", inner)]


def test_short_boundary_is_not_found_in_the_middle_of_a_line():
    """`--ab` is no delimiter of boundary `a` unless a line begins with it."""
    content = b"x--ab\r\n x --a\r\n-a\r\na--"

    assert parts(body_of(named(content=content), boundary=b"a"), b"a") == [(b"image", content)]


def test_line_that_begins_with_the_boundary_and_goes_on_is_never_a_wrong_part():
    """RFC 2046 forbids it in content. What follows must not be taken for a head."""
    smuggled = b"x\r\n--ab\r\n" + b"\r\n\r\n".join(named(b"image", b"smuggled"))

    with pytest.raises(RequestError, match="damaged after a boundary"):
        parts(body_of(named(content=smuggled), boundary=b"a"), b"a")


def test_empty_part_may_end_with_its_head():
    """The blank line after the head is the line end before the boundary (RFC 2046, body-part)."""
    assert parts(b"--XbX\r\n" + named()[0] + b"\r\n\r\n--XbX--") == [(b"image", b"")]


@pytest.mark.parametrize("body", [b"", b"--XbX--", b"--XbX--\r\n", b"\r\n--XbX--"])
def test_form_may_have_no_parts(body: bytes):
    assert parts(body) == []


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png',
        b'Content-Type: image/png\r\nContent-Disposition: form-data; name="image"; filename="a.png"',
        b'X-A: b\r\nContent-Disposition: form-data; filename="a.png"; name="image"\r\nContent-Length: 1',
        b"content-disposition:form-data;name=image;filename=a.png",
        b"CONTENT-DISPOSITION: FORM-DATA; NAME=image",
        b'Content-Disposition: form-data; name = "image"',
        b'Content-Disposition: form-data; filename=""; name="image"',
        b'Content-Disposition: form-data; filename="; name=\\"other\\"; x"; name="image"',
        b'Content-Disposition: form-data; filename="name=other"; name="image"',
        b"Content-Disposition: form-data; filename*=UTF-8''name%3dother; name=image",
        b'Content-Disposition: form-data; filename="\xc3\xbc\xff \\\\"; name="image"',
        b'X: Content-Disposition: form-data; name="other"\r\nContent-Disposition: form-data; name="image"',
    ],
    ids=repr,
)
def test_name_is_found_in_every_order_and_case(head: bytes):
    assert parts(body_of((head, b"x"))) == [(b"image", b"x")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [(b'a\\"b', b'a"b'), (b"a\\\\b", b"a\\b"), (b"", b""), (b"a b;c=d", b"a b;c=d"), (b"\xc3\xbc", b"\xc3\xbc")],
)
def test_quoted_name_is_read_with_its_escapes(written: bytes, meant: bytes):
    assert parts(body_of(named(written))) == [(meant, b"x")]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"Content-Type: image/png",
        b"Content-Disposition: form-data",
        b'Content-Disposition: form-data; filename="a.png"',
        b'Content-Disposition: form-data; filename="name=image"',
        b'Content-Disposition: form-data; nickname="image"',
        b'Content-Disposition: attachment; name="image"',
        b'X-Content-Disposition: form-data; name="image"',
    ],
    ids=repr,
)
def test_part_without_a_name_is_refused(head: bytes):
    with pytest.raises(RequestError, match="has no name") as caught:
        parts(body_of((head, b"x")))

    assert caught.value.status == 400


WHOLE = body_of(named(b"a", b"1"), named(b"b", b"2"))


@pytest.mark.parametrize("end", range(1, len(WHOLE) - 3))
def test_form_that_is_cut_anywhere_is_refused(end: int):
    """Never a shorter list of parts, which would be taken for the whole, nor a part that is cut."""
    found: list[tuple[bytes, bytes]] = []

    with pytest.raises(RequestError):
        found.extend(multipart.parts(WHOLE[:end], b"XbX"))  # those before the damage are kept

    assert found in ([], [(b"a", b"1")], [(b"a", b"1"), (b"b", b"2")])


@pytest.mark.parametrize(
    "body",
    [
        b"garbage",
        WHOLE.replace(b"\r\n", b"\n"),
        WHOLE.replace(b"\r\n", b"\r"),
        WHOLE.replace(b"\r\n\r\n", b"\r\n"),
        b"x" + WHOLE,
        WHOLE.replace(b"--XbX\r\n", b"--XbXX\r\n"),
        WHOLE.replace(b"--XbX\r\n", b"--XbX-\r\n"),
        b"--XbX",
        b"--XbX\r\n",
    ],
    ids=repr,
)
def test_damaged_form_is_refused(body: bytes):
    with pytest.raises(RequestError, match="send a whole multipart/form-data body"):
        parts(body)


def test_head_beyond_the_limit_is_refused():
    fits = b"X: " + b"x" * (multipart.MAX_PART_HEADER_BYTES - 200)
    too_long = b"X: " + b"x" * multipart.MAX_PART_HEADER_BYTES

    assert parts(body_of((fits + b"\r\n" + named()[0], b"x"))) == [(b"image", b"x")]
    with pytest.raises(RequestError):
        parts(body_of((too_long + b"\r\n" + named()[0], b"x")))


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"multipart/form-data; boundary=XbX",
        b"Multipart/Form-Data; Boundary=XbX",
        b'multipart/form-data; boundary="XbX"',
        b"multipart/form-data;boundary=XbX; charset=utf-8",
        b"multipart/form-data; charset=utf-8 ; boundary = XbX",
        b'multipart/form-data; boundary="XbX";',
    ],
)
def test_boundary_is_found_in_every_content_type(value: bytes):
    assert multipart.files({b"content-type": value}, body_of(named()), "image", ARGS) == [b"x"]


@pytest.mark.parametrize("boundary", [b"a b", b"'()+_,-./:=?", b"-" * 70, b"a;b"])
def test_quoted_boundary_may_have_any_character(boundary: bytes):
    headers = content_type(b'"%s"' % boundary)

    assert multipart.files(headers, body_of(named(), boundary=boundary), "image", ARGS) == [b"x"]


@pytest.mark.parametrize(
    "value", [b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; x=y"]
)
def test_form_without_a_boundary_is_refused(value: bytes):
    with pytest.raises(RequestError, match="has no boundary"):
        multipart.files({b"content-type": value}, body_of(named()), "image", ARGS)


def test_files_are_those_of_the_field_with_or_without_a_file_name():
    body = body_of(
        named(b"images", b"1", b'; filename="a"'),
        named(b"image", b"no"),
        named(b"images", b"2"),
        named(b"Images", b"no"),
    )

    assert multipart.files(content_type(), body, "images", ARGS) == [b"1", b"2"]


@pytest.mark.parametrize("body", [b"", b"--XbX--", body_of(named(b"other")), body_of(named(b"image[]"))])
def test_form_without_the_field_lacks_it_as_pydantic_says(body: bytes):
    with pytest.raises(multipart.ValidationError) as caught:
        multipart.files(content_type(), body, "image", ARGS)

    assert caught.value.detail == {"type": "missing", "loc": ["image"], "msg": "Field required"}
    assert caught.value.status == 400


def test_as_many_images_as_allowed_and_no_more():
    args = quick_args(max_images=3)

    assert len(multipart.files(content_type(), body_of(*[named()] * 3), "image", args)) == 3
    with pytest.raises(RequestError, match="more than 3 images") as caught:
        multipart.files(content_type(), body_of(*[named()] * 4), "image", args)
    assert caught.value.status == 413


def test_a_thousand_parts_are_read_and_a_hundred_thousand_refused():
    many = [named(b"images", b"%d" % at) for at in range(1000)]

    assert multipart.files(content_type(), body_of(*many), "images", ARGS) == [b"%d" % at for at in range(1000)]
    for name in (b"images", b"other"):
        with pytest.raises(RequestError, match="more than 1000") as caught:
            multipart.files(content_type(), body_of(*[named(name, b"")] * 100_000), "images", ARGS)
        assert caught.value.status == 413


def test_other_parts_are_ignored_up_to_a_bound():
    others = [named(b"other")] * multipart.MAX_OTHER_PARTS

    assert multipart.files(content_type(), body_of(*others, named()), "image", ARGS) == [b"x"]
    with pytest.raises(RequestError, match="parts that are no 'image'"):
        multipart.files(content_type(), body_of(*others, named(b"other"), named()), "image", ARGS)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (body_of(named(), named(b"class", b"dog")), "dog"),
        (body_of(named(b"class", "hérisson".encode()), named()), "hérisson"),
        (body_of(named(b"class", b"dog"), named(b"class", b"cat")), "dog"),
        (body_of(named(b"class", b"")), ""),
        (body_of(named(b"class", b"\xff")), "\ufffd"),
        (body_of(named()), None),
        (b"", None),
    ],
)
def test_text_is_the_first_part_of_its_name(body: bytes, text: str | None):
    assert multipart.text(content_type(), body, "class") == text


def test_urlencoded_form_is_read_as_what_it_says():
    headers = {b"content-type": b"application/x-www-form-urlencoded; charset=utf-8"}
    body = urlencode({"a": "1", "image": "x=&y"}).encode() + b"&image=" + quote(bytes(range(256))).encode() + b"&image="

    assert multipart.files(headers, body, "image", ARGS) == [b"x=&y", bytes(range(256)), b""]


# --- as another parser reads it ---------------------------------------------------------------------------------------

TOKEN = b"abcXYZ019-_."
NAMES = (b"image", b"images", b"class", b"name", b"a b", "größe".encode(), b"x;name=image", b"", b"it's")
FILE_NAMES = (b"", b"a.png", b"C:/a b.png", b"; name=x", b"name", "ü.png".encode(), b"a;b=c", b"filename=x")
TYPES = (b"image/png", b"application/octet-stream", b"text/plain; charset=utf-8", b"multipart/mixed; boundary=x")


def generated(rng: Random) -> tuple[bytes, bytes]:
    """A well-formed body, and its boundary."""
    boundary = bytes(rng.choices(TOKEN, k=rng.randint(1, 70)))
    return body_of(*(generated_part(rng, boundary) for _ in range(rng.randrange(7))), boundary=boundary), boundary


def generated_part(rng: Random, boundary: bytes) -> Part:
    is_file = rng.random() < 0.6
    parameters = [b'name="%s"' % rng.choice(NAMES)]
    if is_file:
        parameters.insert(rng.randrange(2), b'filename="%s"' % rng.choice(FILE_NAMES))
    lines = [b"; ".join([b"Content-Disposition: form-data", *parameters])]
    if rng.random() < 0.5:
        lines.insert(rng.randrange(2), b"Content-Type: " + (rng.choice(TYPES) if is_file else b"text/plain"))
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines) + 1), b"X-More: name=x; " + b"y" * rng.randrange(200))
    if rng.random() < 0.2:
        lines = [line.replace(b"Content-Disposition", b"content-disposition") for line in lines]
    return b"\r\n".join(lines), generated_content(rng, boundary, text=not is_file)


def generated_content(rng: Random, boundary: bytes, *, text: bool) -> bytes:
    """Bytes, line ends and what looks like a boundary, but is none."""
    pieces = (b"\r\n", b"\n", b"\r", b"--", b"-", boundary[:-1], boundary, b"\r\n--" + boundary[:-1], b"\r\n\r\n", b"")
    chosen = [
        rng.choice((*pieces, b"text" if text else rng.randbytes(rng.randrange(60)))) for _ in range(rng.randrange(9))
    ]
    content = b"".join(chosen)
    while b"--" + boundary in b"\r\n" + content:
        content = content.replace(b"--" + boundary, b"")
    return content


async def by_starlette(body: bytes, boundary: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of each part as Starlette and python-multipart read it."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = list(content_type(b'"%s"' % boundary).items())
    form = await Request({"type": "http", "method": "POST", "headers": headers}, receive).form()
    found = []
    for name, value in form.multi_items():
        content = await value.read() if isinstance(value, UploadFile) else value.encode()
        found.append((name.encode(), content))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_forms_are_read_as_starlette_reads_them(seed: int):
    rng = Random(seed)

    async def compare() -> list[int]:
        counts = []
        for _ in range(50):
            body, boundary = generated(rng)
            expected = await by_starlette(body, boundary)
            assert parts(body, boundary) == expected, body
            counts.append(len(expected))
        return counts

    counts = asyncio.run(compare())

    assert set(counts) >= {0, 1, 6}


# --- bodies -----------------------------------------------------------------------------------------------------------


def read(messages: Sequence[dict[str, Any]], *, limit: int = 10, headers: Headers | None = None) -> bytes:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    request = OurRequest("/predict_image", headers or {}, receive, "", MemoryBudget(2**20))
    return asyncio.run(request.read(limit))


def piece(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    "messages",
    [
        [piece(b"0123456789", more=False)],
        [piece(b"01"), piece(b""), piece(b"23456789"), piece(b"", more=False)],
        [piece(b"0123456789"), {"type": "http.request"}],
    ],
)
def test_body_is_put_together(messages: list[dict[str, Any]]):
    assert read(messages) == b"0123456789"


def test_body_beyond_the_limit_is_refused_whatever_its_length_says():
    with pytest.raises(RequestError, match="more than the limit of 10 bytes") as caught:
        read([piece(b"01234"), piece(b"567890"), piece(b"never asked for")], headers={b"content-length": b"3"})
    assert caught.value.status == 413
    for declared in (b"11", b"9" * 5000):
        with pytest.raises(RequestError):
            read([], headers={b"content-length": declared})  # nothing of it is read
    assert read([piece(b"x", more=False)], headers={b"content-length": b"-1"}) == b"x"


def test_client_that_goes_is_no_body():
    with pytest.raises(ClientGone):
        read([piece(b"01"), {"type": "http.disconnect"}])
