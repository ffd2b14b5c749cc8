"""The REST contract: how requests are read, and the shapes of answers and errors. A Starlette application, without Ray.

It keeps what clients of the replaced BentoML service can see: four POST endpoints, their errors, probes, schema.json,
docs.json and /metrics. Where BentoML answered 500 to bad input, the answer here is a 4xx of the same shape. Nothing a
client sends is unpickled, fetched or used as a path.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan, Message

from rayapp.config import ServeArgs
from rayapp.errors import RequestError
from rayapp.serve import description
from rayapp.serve.keys import ApiKeys
from rayapp.serve.metrics import CONTENT_TYPE, ENDPOINTS, Metrics
from rayapp.serve.replica import Replica, Served
from rayapp.vision.predictor import Float32Array

Json = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]

SERVER = "BentoML Service/VisionClassifier"
HEALTH = {"status": "healthy", "service": "mlflow_vision_classifier"}
UNEXPECTED = "An unexpected error has occurred, please check the server log."
OPEN = "/health"  # for whoever watches; it tells nothing
MAX_TEXT_FIELDS = 1000  # starlette's own limit, and so the replaced service's
MAX_OTHER_FILES = 16  # file parts of other names, which are ignored
MAX_JSON_BYTES = 2**20  # JSON never holds an image, so a long one is not even parsed
MORE_HEADERS = {503: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}  # of errors, by status

log = logging.getLogger(__name__)


# --- the application --------------------------------------------------------------------------------------------------


def build_app(
    replica: Replica, args: ServeArgs, metrics: Metrics, *, lifespan: Lifespan[Starlette] | None = None
) -> Starlette:
    """The ASGI application that answers with replica, within the limits of args; lifespan runs beside it."""
    metrics.watch_queue(lambda: replica.num_queued)
    endpoints = _Endpoints(replica, args, metrics)
    keys = ApiKeys(args.api_keys) if args.api_keys else None
    handlers: tuple[Handler, ...] = (
        endpoints.predict_image, endpoints.predict_batch, endpoints.get_model_info, endpoints.health
    )  # fmt: skip
    page = resources.files("rayapp.serve").joinpath("page.html").read_text(encoding="utf-8")

    async def metrics_page(_: Request) -> Response:
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    fixed = {
        "/": HTMLResponse(page),
        "/schema.json": _json(description.schema()),
        "/docs.json": _json(description.openapi()),
        **{path: PlainTextResponse("\n") for path in ("/livez", "/readyz", "/healthz")},
    }
    return Starlette(
        routes=[
            *(
                Route(path, _endpoint(path, _guarded(path, handler, keys), args, metrics), methods=["POST"])
                for path, handler in zip(ENDPOINTS, handlers, strict=True)
            ),
            *(Route(path, _always(answer)) for path, answer in fixed.items()),
            Route("/metrics", metrics_page),
        ],
        lifespan=lifespan,
    )


class _Endpoints:
    """The four endpoints. Each request takes one reference to the served model and uses nothing else of the replica."""

    def __init__(self, replica: Replica, args: ServeArgs, metrics: Metrics) -> None:
        self._replica = replica
        self._args = args
        self._metrics = metrics

    async def predict_image(self, request: Request) -> Response:
        served = self._replica.served
        self._replica.check_room(1)
        files = await _files(request, "image", self._args)
        (row_k,) = await self._replica.predict(served, files[:1])
        self._metrics.predicted(served.label, served.digest, 1)
        return _json(prediction(row_k, served.class_names), headers=_version(served))

    async def predict_batch(self, request: Request) -> Response:
        served = self._replica.served
        self._replica.check_room(1)
        files = await _files(request, "images", self._args)
        rows = await self._replica.predict(served, files)
        self._metrics.predicted(served.label, served.digest, len(rows))
        return _json([prediction(row_k, served.class_names) for row_k in rows], headers=_version(served))

    async def get_model_info(self, _: Request) -> Response:
        served = self._replica.served
        return _json(served.info(), headers=_version(served))

    async def health(self, _: Request) -> Response:
        return _json(HEALTH)


def prediction(row_k: Float32Array, class_names: Sequence[str]) -> Json:
    """One prediction as clients get it, from its probabilities (K,)."""
    probabilities = row_k.astype(float).tolist()
    index = int(row_k.argmax())
    return {
        "predicted_class": class_names[index],
        "predicted_index": index,
        "confidence": probabilities[index],
        "probabilities": dict(zip(class_names, probabilities, strict=True)),
    }


# --- answers ----------------------------------------------------------------------------------------------------------


class ValidationError(RequestError):
    """Input of the wrong form, answered with pydantic's words as BentoML does; detail is one of its error items."""

    def __init__(self, kind: str, message: str, *loc: str) -> None:
        super().__init__("1 validation error for Input")
        self.detail = {"type": kind, "loc": list(loc), "msg": message}


def _endpoint(path: str, handler: Handler, args: ServeArgs, metrics: Metrics) -> Handler:
    async def endpoint(request: Request) -> Response:
        with metrics.request(path) as answered:
            response = await _answer(path, handler, request, args)
            answered(response.status_code)
        response.headers["server"] = SERVER
        response.headers["x-bentoml-request-id"] = secrets.token_hex(8)
        return response

    return endpoint


def _guarded(path: str, handler: Handler, keys: ApiKeys | None) -> Handler:
    """The handler, behind the keys where there are some."""
    if keys is None or path == OPEN:
        return handler

    async def guarded(request: Request) -> Response:
        keys.check(request.headers.get("authorization"))
        return await handler(request)

    return guarded


async def _answer(path: str, handler: Handler, request: Request, args: ServeArgs) -> Response:
    """The handler's answer, or the error's. One of the two places where errors become sentences."""
    try:
        async with asyncio.timeout(args.timeout_s):
            return await handler(_limited(request, args.max_body_bytes))
    except ValidationError as error:
        return _json({"error": str(error), "detail": [error.detail]}, error.status)
    except RequestError as error:
        return _json({"error": str(error)}, error.status, MORE_HEADERS.get(error.status))
    except TimeoutError:
        return _json({"error": f"Not able to process the request in {args.timeout_s:g} seconds"}, 504)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody is left to read it; nginx's number, for the metrics
    except Exception:
        log.exception("request failed path=%s", path)
        return _json({"error": UNEXPECTED}, 500)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def _version(served: Served) -> dict[str, str]:
    """Which model answered, for clients and for whoever reads their logs."""
    return {"x-model-version": served.label, "x-model-digest": served.digest}


def _always(answer: Response) -> Handler:
    async def same(_: Request) -> Response:
        return answer

    return same


# --- requests ---------------------------------------------------------------------------------------------------------


def _limited(request: Request, max_bytes: int) -> Request:
    """The request, with a body that ends in a RequestError beyond max_bytes, whatever its Content-Length says."""
    too_large = RequestError(f"the request has more than the limit of {max_bytes} bytes; send less at once", 413)
    if _media_type(request) == "application/vnd.bentoml+pickle":
        raise RequestError("application/vnd.bentoml+pickle is not allowed in main server", 415)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    num_read = 0

    async def receive() -> Message:
        nonlocal num_read
        message = await request.receive()
        num_read += len(message.get("body", b""))
        if num_read > max_bytes:
            raise too_large
        return message

    return Request(request.scope, receive)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _files(request: Request, field: str, args: ServeArgs) -> list[bytes]:
    """The contents of the parts named field, in order, at least one. Raises RequestError where there is none."""
    if _media_type(request) not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise _why_no_file(await request.body(), field)
    try:
        async with request.form(
            max_files=args.max_images + MAX_OTHER_FILES,
            max_fields=MAX_TEXT_FIELDS,
            max_part_size=args.max_body_bytes,
        ) as form:
            parts = form.getlist(field)
            if len(parts) > args.max_images:
                raise RequestError(f"{len(parts)} images in one request; at most {args.max_images} are allowed", 413)
            files = [await part.read() if isinstance(part, UploadFile) else _as_bytes(part) for part in parts]
    except HTTPException as error:  # what starlette makes of a form that it cannot read
        raise RequestError(error.detail, 413 if error.detail.startswith("Too many") else 400) from error
    except UnicodeError as error:  # starlette decodes names by the request's charset, which may be nonsense
        raise RequestError("the form has names that its charset cannot decode; use UTF-8") from error
    if not files:
        raise _missing(field)
    return files


def _as_bytes(text: str) -> bytes:
    """The bytes of a part without a file name, which starlette read as text: UTF-8 or, where that failed, latin-1."""
    try:
        data = text.encode("latin-1")
        data.decode()
    except UnicodeDecodeError:
        return data  # not UTF-8, so it was latin-1
    except UnicodeEncodeError:
        pass
    return text.encode(errors="replace")


def _why_no_file(body: bytes, field: str) -> RequestError:
    """What is wrong with a request that is no form: the answers that BentoML gives to JSON."""
    if not body.strip():
        return _missing(field)
    if len(body) > MAX_JSON_BYTES:
        return RequestError(_as_a_file(field))
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return ValidationError("json_invalid", f"Invalid JSON: {error}; {_as_a_file(field)}")
    if not isinstance(content, dict):
        return ValidationError("model_type", "Input should be a valid dictionary or instance of Input")
    if field not in content:
        return _missing(field)
    if field == "images" and not isinstance(content[field], list):
        return ValidationError("list_type", "Input should be a valid list", field)
    return RequestError(_as_a_file(field))


def _missing(field: str) -> ValidationError:
    return ValidationError("missing", "Field required", field)


def _as_a_file(field: str) -> str:
    return f"send each image as a file part named '{field}' of a multipart/form-data request; URLs are not fetched"
