"""Requests as no client should send them: good ones, after their images, forms, JSON or HTTP were damaged.

case() draws one from a random generator: a plain one gives the same request for the same seed, that of Hypothesis makes
a failing request small again. wire.send() delivers it as it is; wire.complaint() says what is wrong with the answer.
"""

from __future__ import annotations

import encodings.aliases
from random import Random

from tests.contract.damage import bombs, corpus, cut, damaged, double, flip, insert, set_number, swap
from tests.contract.wire import Case, Layer, file_head, form, request

LAYERS: tuple[Layer, ...] = ("image", "form", "json", "http")
PREDICT = {b"/predict_image": b"image", b"/predict_batch": b"images"}
ENDPOINTS = (*PREDICT, b"/get_model_info", b"/health")


def case(rng: Random, layer: Layer | None = None) -> Case:
    """A damaged request; half of them have damaged images."""
    makers = {"image": _image_case, "form": _form_case, "json": _json_case, "http": _http_case}
    return makers[layer or rng.choice(("image", "image", *LAYERS))](rng)


def numbered(seed: int, index: int) -> Case:
    """The index-th request of a seed: the same on every machine with the same Pillow."""
    return case(Random(f"{seed}/{index}"))


def good(path: bytes = b"/predict_image") -> Case:
    """A request that is answered 200."""
    return Case("good", "form", request(path, *form([(file_head(PREDICT[path]), corpus()["png-RGB"])])))


def _image_case(rng: Random) -> Case:
    path = rng.choice(sorted(PREDICT))
    if rng.random() < 0.03:
        kind = rng.choice(sorted(bombs()))
        name, data = "bomb", bombs()[kind]
    else:
        kind = rng.choice(sorted(corpus()))
        name, data = damaged(rng, corpus()[kind])
    before, after = ([corpus()["png-L"]] * rng.randrange(3) if path == b"/predict_batch" else [] for _ in range(2))
    parts = [(file_head(PREDICT[path]), content) for content in (*before, data, *after)]
    return Case(f"image/{kind}/{name}", "image", request(path, *form(parts)))


# --- forms ------------------------------------------------------------------------------------------------------------

# Heads of parts; {} stands for the field's name.
HEADS = [
    b"", b":", b"x", b"\0", b"\xff\xfe", b"Content-Disposition", b"Content-Disposition:", b"Content-Disposition: ",
    b"Content-Disposition: form-data", b"Content-Disposition: form-data;", b"Content-Disposition: form-data; name",
    b"Content-Disposition: form-data; name=", b'Content-Disposition: form-data; name=""; filename="a"',
    b'Content-Disposition: form-data; name="{}', b"Content-Disposition: form-data; name='{}'; filename='a'",
    b'Content-Disposition: attachment; name="{}"; filename="a"', b'Content-Disposition: form-data name="{}"',
    b'Content-Disposition: form-data; filename="a"', b'Content-Disposition: form-data; name="{}\0"; filename="a"',
    b'Content-Disposition: form-data; name="{}"; name="{}"; filename="a"; filename="b"',
    b'Content-Disposition: form-data; name="x"; name="{}"; filename="a"',
    b'Content-Disposition: form-data; name="\xff\xfe\xfd"; filename="\xff"',
    b"Content-Disposition: form-data; name*=UTF-8''{}; filename*=UTF-8''%00%ff", b'Content-Type: image/png',
    b'Content-Disposition: form-data;\r\n name="{}";\r\n\tfilename="a"', b'\r\n\r\n', b"\n\n", b"\r", b"--XbX",
    b"--XbX--", b'Content-Disposition: form-data; name="{}"; filename="a"\r\nContent-Disposition: form-data; name="y"',
    b'Content-Disposition: form-data; name="{}"; filename="a"\nContent-Type: image/png',
    b'Content-Disposition: form-data; name="{}"; filename="../../../etc/passwd"',
    b'Content-Disposition: form-data; name="{}"; filename="C:\\a\\"b\\"\0.png"',
    b'Content-Disposition: form-data; name="{}"; filename="; name=\\"x\\"; a.png"',
    b'Content-Disposition: form-data; filename="; name=x"; name="{}"',
    b'Content-Disposition: form-data; name="{}"; filename="' + b"a" * 70_000 + b'"',
    b'Content-Disposition: form-data; name="' + b"n" * 70_000 + b'"',
    b'Content-Disposition: form-data; name="{}"; filename="' + b"\\" * 5_000,
    b'Content-Disposition: form-data; name="{}"; filename="a"\r\nX: ' + b"x" * 300_000,
    b"X: y\r\n" * 3_000 + b'Content-Disposition: form-data; name="{}"; filename="a"',
    b'Content-Disposition: form-data; name="{}"; filename="a"\r\nContent-Transfer-Encoding: base64',
    b'Content-Disposition: form-data; name="{}"; filename="a"\r\nContent-Type: multipart/mixed; boundary=XbX',
    b'Content-Disposition: form-data; name="{}"; filename="a"\r\nContent-Length: -1\r\nContent-Encoding: gzip',
    b'Content-Disposition: form-data; name="{}"\r\nContent-Type: text/plain; charset=utf-16',
    b"cONTENT-dISPOSITION:form-data;NAME={};FILENAME=a", b"Content-Disposition : form-data; name={}; filename=a",
]  # fmt: skip
BOUNDARIES = [
    b"", b";", b"; boundary", b"; boundary=", b'; boundary=""', b'; boundary="XbX', b"; boundary='XbX'",
    b"; boundary=Xb", b"; boundary=XbXX", b"; boundary=other", b"; boundary=XbX; boundary=other",
    b"; boundary=other; boundary=XbX", b"; BOUNDARY=XbX", b"; boundary = XbX", b';boundary="XbX"',
    b"; boundary=XbX, multipart/mixed", b"; boundary*=utf-8''XbX", b"; boundary=" + b"X" * 71,
    b"; boundary=" + b"X" * 7_000, b"; boundary=--XbX", b"; boundary=-", b"; boundary=X\tX", b"; boundary=\xff\xfe",
    b"; boundary=XbX; charset=", b"; boundary=XbX;;;;", b"; x=\"; boundary=XbX", b"; boundary=\\",
    b"; boundary=(a|b)*+?", b"; boundary=%58%62%58", b"; boundary=XbX; charset=\xff",
]  # fmt: skip
MEDIA = [
    b"multipart/mixed", b"MULTIPART/FORM-DATA", b"multipart/form-data ", b"multipart/form-datax", b"multipart/*",
    b"multipart", b"application/x-www-form-urlencoded", b"application/json", b"text/plain", b"image/png", b"*/*", b"",
    b"/", b"a" * 9_000, b"application/vnd.bentoml+pickle", b"application/octet-stream",
    b"application/vnd.bentoml+multiple-outputs",
]  # fmt: skip
URLENCODED = [
    b"image", b"image=", b"images=&images=", b"image=%", b"image=%zz&%", b"image=%ff%d8%ff", b"%69mage=x",
    b"image=\xff\x00", b"&&&&=&=", b"a=b&" * 5_000, b";" * 3_000, b"image=" + b"+" * 100_000,
    b"image=http://127.0.0.1:1/a.png", b"\0", b"images[]=x",
]  # fmt: skip
LINE_ENDS = (b"\n", b"\r", b"", b"\r\r\n", b"\n\r", b"\0\r\n", b" \r\n")
CHARSETS = sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values(), "punycode", "idna", "undefined"})


def _form_case(rng: Random) -> Case:
    path = rng.choice(sorted(PREDICT))
    field = PREDICT[path]
    edit = rng.choice((_odd_head, _odd_head, _odd_body, _odd_body, _odd_body, _odd_type, _odd_type, _many, _urlencoded))
    name, body, content_type = edit(rng, field)
    return Case(f"form/{name}", "form", request(path, body, content_type))


Form = tuple[str, bytes, bytes]  # what was done, the body, the header of its content type


def _odd_head(rng: Random, field: bytes) -> Form:
    """Parts of which some have an odd head."""
    parts = [(file_head(field), corpus()["png-RGB"])]
    odd = rng.choice(HEADS).replace(b"{}", field)
    parts.insert(rng.randrange(2), (odd, rng.choice((corpus()["png-RGB"], b"text", b"\xff", b""))))
    if rng.random() < 0.5:
        del parts[rng.randrange(2)]
    return f"head {odd[:60]!r}", *form(parts)


def _odd_body(rng: Random, field: bytes) -> Form:
    """A good form, cut, bitten and mixed up."""
    inner = form([(file_head(field), corpus()["png-L"])])[0]
    body, content_type = form(
        [(file_head(field), rng.choice((corpus()["png-RGB"], b"short", inner, b"\r\n--XbX\r\n")))]
    )
    head = body.index(b"\r\n\r\n") + 4
    change = rng.choice(("bytes", "bytes", "ends", "before", "after", "first", "blank", "last", "twice", "nothing"))
    if change == "bytes":
        name, body = damaged(rng, body)
        return f"body {name}", body, content_type
    if change == "ends":
        end = rng.choice(LINE_ENDS)
        whole = rng.random() < 0.5
        body = body.replace(b"\r\n", end) if whole else body[:head].replace(b"\r\n", end) + body[head:]
    elif change in ("before", "after"):
        more = rng.choice((b"preamble\r\n", b"\r\n", b"\r\n" * 2_000, b"--", b"\0", b"--XbX--\r\n", inner))
        body = more + body if change == "before" else body + more
    elif change == "first":
        body = body[5:]
    elif change == "blank":
        body = body.replace(b"\r\n\r\n", b"\r\n", 1)
    elif change == "last":
        body = body[: -rng.randint(1, 12)] + rng.choice((b"", b"-", b"\r\n", b"garbage"))
    else:
        body = body + body if change == "twice" else b""
    return f"body {change}", body, content_type


def _odd_type(rng: Random, field: bytes) -> Form:
    """A good form that says that it is something else, or so."""
    body, _ = form(
        [(file_head(field), corpus()["png-RGB"]), (b'Content-Disposition: form-data; name="\xfc\xdf"', b"\xff")]
    )
    charset = b"; boundary=XbX; charset=" + rng.choice(CHARSETS).encode()
    media, parameters = b"multipart/form-data", rng.choice((rng.choice(BOUNDARIES), charset))
    if rng.random() < 0.3:
        media, parameters = rng.choice(MEDIA), b"; boundary=XbX"
    return f"type {(media + parameters)[:80]!r}", body, b"Content-Type: " + media + parameters


def _many(rng: Random, field: bytes) -> Form:
    """Very many parts."""
    count = rng.choice((2, 40, 999, 1_000, 1_001, 1_100, 2_500))
    name = rng.choice((field, b"other"))
    head, content = rng.choice(((file_head(name), b"x"), (b'Content-Disposition: form-data; name="%s"' % name, b"")))
    return f"{count} parts {name.decode()}", *form([(head, content)] * count)


def _urlencoded(rng: Random, field: bytes) -> Form:
    body = rng.choice(URLENCODED)
    charset = rng.choice((b"", b"; charset=" + rng.choice(CHARSETS).encode()))
    return f"urlencoded {body[:40]!r}", body, b"Content-Type: application/x-www-form-urlencoded" + charset


# --- JSON -------------------------------------------------------------------------------------------------------------

JSON = [
    b"", b" ", b"\0", b"{", b"}", b"[]", b"{}", b"null", b"true", b"NaN", b"Infinity", b"-0", b"1e999", b"9" * 5_000,
    b"-", b"{" * 10, b"[" * 900 + b"]" * 900, b"[" * 100_000, b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    b'{"image":' * 50_000, b'"\\ud800"', b'{"\\ud800": 1}', b'{"image": "\\udfff"}', b'"\xff\xfe"', b"\xef\xbb\xbf{}",
    b"\xff\xfe{\0}\0", b'{"a":1,}', b"// x\n{}", b"{'image': 1}", b'{"image": 1, "image": 2}',
    b'{"images": [[[[0]]]]}', b'{"images": {"0": "x"}}', b'{"images": [' + b"null," * 2_000 + b"null]}",
    b'{"image": NaN}', b'{"image": 1e999}', b'{"image": ' + b"9" * 9_000 + b"}",
    b'{"image": "' + b"A" * 200_000 + b'"}', b'{"image": "' + b"A" * (2**20 + 1) + b'"}',
    b'{"image": "file:///etc/passwd"}', b'{"image": {"url": "http://127.0.0.1:1/"}}',
    b'{"image": "data:image/png;base64,AAAA"}', b'{"images": ["http://[::1]/"]}', b'{"input": [1]}',
    b'{"image": true}', b'{"": 1}', b'{"__class__": "x", "__proto__": {}}', b"\x80\x04.", b"<x/>", b"a=b",
    b'{"image":"\\u0000"}', b'["' + b"a" * 50_000 + b'"]', b"[" + b"0," * 50_000 + b"0]",
]  # fmt: skip

JSON_MEDIA = (b"application/json", b"application/json; charset=utf-16", b"text/plain", b"APPLICATION/JSON", b"text/xml")


def _json_case(rng: Random) -> Case:
    path = rng.choice(ENDPOINTS)
    body = rng.choice(JSON)
    name = f"{body[:40]!r}"
    if rng.random() < 0.4:
        body = rng.choice((flip, set_number, cut, double, swap, insert))(rng, body or b"{}")
        name += " damaged"
    header = rng.choice((*(b"Content-Type: " + kind for kind in JSON_MEDIA), b"X: y"))
    return Case(f"json/{path.decode()} {name}", "json", request(path, body, header))


# --- HTTP -------------------------------------------------------------------------------------------------------------

METHODS = (
    b"GET", b"HEAD", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"post", b"FOO", b"POST\0", b"", b"\xff",
    b"P" * 999,
)  # fmt: skip
TARGETS = [
    b"/", b"", b"*", b"//", b"/%00", b"/%", b"/%zz", b"/%ff", b"/%e0%80%80", b"/../../etc/passwd", b"/./predict_image",
    b"/predict_image/", b"//predict_image", b"/predict_image?", b"/predict_image?" + b"a=b&" * 9_000,
    b"/predict_image#x", b"/predict_image;x", b"/predict%5fimage", b"/PREDICT_IMAGE", b"/predict_image%0d%0aX:%20y",
    b"/predict_image\t", b"/\xff", b"/predict_image?image=%00&\xff", b"http://x/predict_image",
    b"http://127.0.0.1:1/predict_image", b"https:", b"x:80", b"/a" * 30_000, b"/metrics", b"/shadow", b"/schema.json",
    b"/docs.json", b"/livez", b"/readyz/", b"/-/routes", b"/-/healthz", b"/static_content/..%2f..%2fetc/passwd",
    b"/predict_image\r\nX: y", b"/predict_image HTTP/1.1\r\nX: y\r\n\r\nGET /",
]  # fmt: skip
VERSIONS = (
    b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1 ", b"HTTP", b"", b"http/1.1",
    b"HTTP/1.\xff",
)  # fmt: skip
# Allowed, if strange: the endpoint has to answer.
HEADERS = [
    b"Expect: 100-continue", b"Content-Encoding: br, deflate", b"X: \xff\xfe", b"X: " + b"y" * 7_000,
    b"\r\n".join(b"X%d: y" % n for n in range(50)), b"Connection: keep-alive, close", b"Authorization: Bearer \xff",
    b"Authorization: Basic " + b"A" * 7_000, b"X-Request-ID: a\tb{}\"", b"X-Request-ID: " + b"a" * 7_000,
    b"X-Request-ID: \xff\xfe", b"X-Forwarded-For: \xff, 1.2.3.4", b"X-Client-Id: \xff\x80",
    b"X-Client-Id: " + b"a" * 7_000, b"Accept: image/png", b"Accept-Encoding: x;q=nan", b"Origin: null",
    b"Range: bytes=0-1", b"If-None-Match: *", b"Cookie: \xff", b"Traceparent: 00-x", b"Keep-Alive: timeout=-1",
]  # fmt: skip
# Not allowed, or not in this place: whoever sees it first may refuse it.
ODD_HEADERS = [
    b"Expect: 200-ok", b"Expect: \0", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: \x0bchunked",
    b"Host:", b"Host: a\r\nHost: b", b"Host: \xff", b"X", b": y", b"X : y", b"X\0: y", b"X: \0", b"X: \x01\x7f",
    b"X: y\r\n folded", b" X: y", b"X: y\nY: z", b"X: y\rY: z", b"X: " + b"y" * 70_000, b"X" * 70_000 + b": y",
    b"\r\n".join(b"X%d: y" % n for n in range(2_000)), b"X: y\r\n\r\nGET / HTTP/1.1", b"Connection: upgrade",
    b"Connection: \0", b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", b"content-type: \xff; charset=\0",
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    b"Content-Type: multipart/form-data; boundary=other", b"Content-Type: application/json", b"Content-Encoding: gzip",
    b"Serve_Multiplexed_Model_Id: \xff", b"X-Request-Timeout-Seconds: -1",
]  # fmt: skip
LENGTHS = (
    b"", b"-1", b"+5", b"0x10", b"5, 5", b"1e3", b"9" * 5_000, b"\xb2", b" ", b"0", b"1", b"18446744073709551616",
    b"4294967296",
)  # fmt: skip
CHUNK_HEADS = (b"%x\r\n", b"%X\r\n", b"000%x\r\n", b"%x;a=b\r\n")
ODD_CHUNK_HEADS = (b"%x \r\n", b"%x\n", b'%x;a="\r\n"\r\n', b"0x%x\r\n", b"-%x\r\n", b"+%x\r\n", b"fffffffff%x\r\n")
ODD_CHUNKS = (b"-1\r\n", b"f" * 16 + b"\r\n", b"g\r\n", b"\r\n", b"5\r\nabc\r\n", b"0x5\r\nabcde\r\n", b"0\r\n\r\n")
LAST_CHUNKS = (b"0\r\n\r\n", b"000\r\n\r\n", b"0\r\nX: y\r\n\r\n")
ODD_LAST_CHUNKS = (b"0\r\nContent-Length: 5\r\n\r\n", b"", b"0\r\n", b"0\r\n" + b"X: y\r\n" * 9_000, b"0\n\n", b"0")


def _http_case(rng: Random) -> Case:
    path = rng.choice(ENDPOINTS)
    body, content_type = form([(file_head(PREDICT.get(path, b"image")), corpus()["png-RGB"])])
    lines = [b"POST %s HTTP/1.1" % path, b"Host: x", b"Connection: close", content_type]
    edits = (_odd_line, _header, _odd_header, _odd_header, _odd_length, _chunked, _odd_chunked, _pipelined, _torn)
    return rng.choice(edits)(rng, lines, body)


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def _sent(name: str, lines: list[bytes], body: bytes, *, whole: bool = False) -> Case:
    data = b"\r\n".join(lines) + b"\r\n\r\n" + body
    return Case(f"http/{name}", "http", data, whole=whole, method=lines[0].partition(b" ")[0])


def _odd_line(rng: Random, lines: list[bytes], body: bytes) -> Case:
    words = lines[0].split(b" ")
    at = rng.randrange(3)
    words[at] = rng.choice((METHODS, TARGETS, VERSIONS)[at])
    if at == 0 and rng.random() < 0.3:
        words[1] = rng.choice(TARGETS)
    line = b" ".join(words)
    return _sent(f"line {line[:80]!r}", [line, *lines[1:], _length(body)], body)


def _header(rng: Random, lines: list[bytes], body: bytes) -> Case:
    added = rng.choice(HEADERS)
    return _sent(f"header {added[:60]!r}", [*lines, added, _length(body)], body, whole=True)


def _odd_header(rng: Random, lines: list[bytes], body: bytes) -> Case:
    odd = rng.choice(ODD_HEADERS)
    lines = [*lines, _length(body)]
    at = rng.randint(1, len(lines))
    lines.insert(at, odd)
    if rng.random() < 0.2:
        del lines[rng.randint(1, len(lines) - 1)]
    return _sent(f"header {odd[:60]!r} at {at}", lines, body)


def _odd_length(rng: Random, lines: list[bytes], body: bytes) -> Case:
    near = b"%d" % (len(body) + rng.choice((-1, 1, -100, 100, 10**9)))
    odd = [b"Content-Length: " + rng.choice((*LENGTHS, near)) for _ in range(rng.choice((0, 1, 1, 2)))]
    kept = [_length(body)] if rng.random() < 0.3 else []
    return _sent(f"length {[one[16:40] for one in odd]}", [*lines, *kept, *odd], body)


def _cut_in_chunks(rng: Random, body: bytes, heads: tuple[bytes, ...]) -> list[bytes]:
    size, head = rng.choice((1, 7, 100, 5_000)), rng.choice(heads)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return [head % len(piece) + piece + b"\r\n" for piece in pieces]


def _chunked(rng: Random, lines: list[bytes], body: bytes) -> Case:
    chunks = _cut_in_chunks(rng, body, CHUNK_HEADS)
    last = rng.choice(LAST_CHUNKS)
    name = f"chunks {chunks[0][:20]!r} ... {last!r}"
    return _sent(name, [*lines, b"Transfer-Encoding: chunked"], b"".join([*chunks, last]), whole=True)


def _odd_chunked(rng: Random, lines: list[bytes], body: bytes) -> Case:
    """Chunks of which one or all are odd, or the end."""
    chunks = _cut_in_chunks(rng, body, rng.choice((CHUNK_HEADS, ODD_CHUNK_HEADS)))
    odd, last = rng.choice(ODD_CHUNKS), rng.choice(rng.choice((LAST_CHUNKS, ODD_LAST_CHUNKS)))
    chunks.insert(rng.randint(0, len(chunks)), odd)
    lengths = [_length(body)] if rng.random() < 0.2 else []
    name = f"chunks {chunks[0][:20]!r} ... {odd!r} ... {last[:20]!r}"
    return _sent(name, [*lines, *lengths, b"Transfer-Encoding: chunked"], b"".join([*chunks, last]))


def _pipelined(rng: Random, lines: list[bytes], body: bytes) -> Case:
    """Several requests at once on one connection, some without one of their headers."""
    first, second = lines[:2] + lines[3:], lines[:]
    for some in (first, second):
        if rng.random() < 0.3:
            del some[rng.randrange(1, len(some))]
    more = b"\r\n".join([*second, _length(body)]) + b"\r\n\r\n" + body
    return _sent("pipelined", [*first, _length(body)], body + more * rng.randint(1, 3))


def _torn(rng: Random, lines: list[bytes], body: bytes) -> Case:
    good = _sent("", [*lines, _length(body)], body)
    name, data = damaged(rng, good.data)
    return Case(f"http/torn {name}", "http", data, whole=False)
