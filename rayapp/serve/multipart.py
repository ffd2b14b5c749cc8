"""How a request's body becomes image files: multipart forms read whole, within the limits of ServeArgs.

A form is cut at its boundary with bytes.find, which for an image of a few kilobytes takes a tenth of the time that a
streaming parser in Python takes. Whatever is wrong with a body is a RequestError in the contract's words
(docs/contract.md, 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl

import orjson

from rayapp.config.serve import ServeArgs
from rayapp.errors import RequestError
from rayapp.serve.messages import Headers, media_type

MAX_OTHER_PARTS = 1000  # parts of other names, which are ignored
MAX_PART_HEADER_BYTES = 4 * 2**10
MAX_URLENCODED_BYTES = 64 * 2**10  # no image comes so, and reading it is slow
MAX_JSON_BYTES = 2**20  # JSON never holds an image, so a long one is not even parsed

_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:[ \t]*form-data(.*)$", re.IGNORECASE | re.MULTILINE)
# one parameter after the other, so that nothing inside a quoted file name is taken for a name
_PARAMETER = re.compile(rb';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\\r\n]|\\.)*)"|([^\s;"]*))')


class ValidationError(RequestError):
    """Input of the wrong form, answered with pydantic's words as BentoML does; detail is one of its error items."""

    def __init__(self, kind: str, message: str, *loc: str) -> None:
        super().__init__("1 validation error for Input")
        self.detail = {"type": kind, "loc": list(loc), "msg": message}


def files(headers: Headers, body: bytes, field: str, args: ServeArgs) -> list[bytes]:
    """The contents of the parts named field, in order, at least one. Raises RequestError where there is none."""
    found, num_others = [], 0
    for name, content in _fields(headers, body, field):
        if name == field.encode():
            found.append(content)
        else:
            num_others += 1
        if len(found) > args.max_images:
            raise RequestError(f"more than {args.max_images} images in one request; send fewer at once", 413)
        if num_others > MAX_OTHER_PARTS:
            raise RequestError(f"more than {MAX_OTHER_PARTS} parts that are no '{field}'; send only images", 413)
    if not found:
        raise missing(field)
    return found


def text(headers: Headers, body: bytes, field: str) -> str | None:
    """The first part named field as text, of a body that files() could read; None where there is none."""
    values = (content for name, content in _fields(headers, body, field) if name == field.encode())
    value = next(values, None)
    return None if value is None else value.decode(errors="replace")


def missing(field: str) -> ValidationError:
    """What is said of a request without its field."""
    return ValidationError("missing", "Field required", field)


def _fields(headers: Headers, body: bytes, field: str) -> Iterable[tuple[bytes, bytes]]:
    kind = media_type(headers)
    if kind == b"multipart/form-data":
        found = _BOUNDARY.search(headers[b"content-type"])
        if found is None:
            raise RequestError("the form has no boundary; let the HTTP client write the Content-Type")
        return parts(body, found[1] or found[2])
    if kind == b"application/x-www-form-urlencoded":
        if len(body) > MAX_URLENCODED_BYTES:
            raise RequestError(_as_a_file(field))
        try:
            fields = parse_qsl(body.decode("latin-1"), True, encoding="latin-1", max_num_fields=2 * MAX_OTHER_PARTS)
        except ValueError as error:
            raise RequestError(f"the form cannot be read: {error}", 413) from error
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    raise _why_no_form(body, field)


def parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each part of a multipart body, in order (RFC 2046 and 7578); none of an empty body.

    Raises RequestError where the form is damaged or ends before its closing boundary.
    """
    if not body:
        return
    delimiter = b"--" + boundary
    at = body.find(delimiter)
    if at < 0 or (at and body[at - 2 : at] != b"\r\n"):
        raise RequestError("the form does not begin with its boundary; send a whole multipart/form-data body")
    at += len(delimiter)
    delimiter = b"\r\n" + delimiter
    while not body.startswith(b"--", at):
        start = body.find(b"\r\n", at, at + MAX_PART_HEADER_BYTES)
        if start < 0 or body[at:start].strip(b" \t"):
            raise RequestError("the form is damaged after a boundary; send a whole multipart/form-data body")
        header_end = body.find(b"\r\n\r\n", start, start + MAX_PART_HEADER_BYTES)
        end = body.find(delimiter, header_end + 2)
        if header_end < 0 or end < 0:
            raise RequestError("the form ends before its closing boundary; send a whole multipart/form-data body")
        yield _name(body[start:header_end]), body[header_end + 4 : end]
        at = end + len(delimiter)


def _name(header: bytes) -> bytes:
    """The name that a part's header gives; raises RequestError where it gives none."""
    disposition = _DISPOSITION.search(header)
    for parameter in _PARAMETER.finditer(disposition[1] if disposition else b""):
        if parameter[1].lower() == b"name":
            return re.sub(rb"\\(.)", rb"\1", parameter[2] or b"") or parameter[3] or b""
    raise RequestError("a part of the form has no name; name each with Content-Disposition: form-data; name=...")


def _why_no_form(body: bytes, field: str) -> RequestError:
    """What is wrong with a request that is no form: the answers that BentoML gives to JSON."""
    if not body.strip():
        return missing(field)
    if len(body) > MAX_JSON_BYTES:
        return RequestError(_as_a_file(field))
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return ValidationError("json_invalid", f"Invalid JSON: {error}; {_as_a_file(field)}")
    if not isinstance(content, dict):
        return ValidationError("model_type", "Input should be a valid dictionary or instance of Input")
    if field not in content:
        return missing(field)
    if field == "images" and not isinstance(content[field], list):
        return ValidationError("list_type", "Input should be a valid list", field)
    return RequestError(_as_a_file(field))


def _as_a_file(field: str) -> str:
    return f"send each image as a file part named '{field}' of a multipart/form-data request; URLs are not fetched"
