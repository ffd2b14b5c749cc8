"""The REST contract: endpoints, the shapes of answers and errors. An ASGI application, without Ray.

It keeps what clients of the replaced BentoML service can see: four POST endpoints, their errors, probes, schema.json,
docs.json and /metrics. Where BentoML answered 500 to bad input, the answer here is a 4xx of the same shape. Nothing a
client sends is unpickled, fetched or used as a path.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from time import perf_counter
from typing import Any

import orjson
from prometheus_client.core import Metric
from starlette.applications import Starlette
from starlette.requests import Request as PageRequest
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.responses import Response as PageResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from rayapp.config.serve import ServeArgs
from rayapp.errors import RequestError
from rayapp.serve import multipart, openapi, shadow
from rayapp.serve.auth import ApiKeys
from rayapp.serve.explain import Explanations
from rayapp.serve.logs import Logs
from rayapp.serve.messages import PNG, ClientGone, MemoryBudget, Request, Response
from rayapp.serve.metrics import CONTENT_TYPE, ENDPOINTS, Metrics, render
from rayapp.serve.replica import Prediction, Replica
from rayapp.vision.predictor import Float32Array

Json = dict[str, Any]
Families = Mapping[str, Sequence[Metric]]  # metrics by replica

SERVER = b"BentoML Service/VisionClassifier"
HEALTH = {"status": "healthy", "service": "mlflow_vision_classifier"}
UNEXPECTED = "An unexpected error has occurred, please check the server log."
OPEN = "/health"  # for whoever watches; it tells nothing
CLOSE = (b"connection", b"close")
MORE_HEADERS = {503: (b"retry-after", b"1"), 401: (b"www-authenticate", b"Bearer")}  # of errors, by status

log = logging.getLogger(__name__)


Handler = Callable[[Request], Awaitable[Response]]


def build_app(
    replica: Replica,
    args: ServeArgs,
    metrics: Metrics,
    *,
    logs: Logs | None = None,
    families: Callable[[], Awaitable[Families]] | None = None,
    lifespan: Lifespan[Starlette] | None = None,
) -> ASGIApp:
    """The ASGI application that answers with replica, within the limits of args; lifespan runs beside it.

    logs are told of each answer. families tells the metrics of all replicas; without it /metrics and /shadow tell those
    of this one alone.
    """

    async def own_families() -> Families:
        return {"": metrics.families()}

    endpoints, budget = _Handlers(replica, args), MemoryBudget(args.max_waiting_bytes)
    keys = ApiKeys(args.api_keys) if args.api_keys else None
    copies = shadow.Shadow(replica, args, metrics)

    def answered(call: Request, answer: Response, seconds: float) -> None:
        """What there is to do once the client has its answer."""
        if (predicted := answer.predicted) is not None:
            metrics.predicted(predicted.served.label, predicted.served.digest, len(answer.files), predicted.seconds)
            copies.offer(predicted, answer.files)
        if logs:
            logs.answered(call, answer, seconds)

    handlers: dict[str, Handler] = {
        "/predict_image": endpoints.predict_image,
        "/predict_batch": endpoints.predict_batch,
        "/get_model_info": endpoints.get_model_info,
        "/health": endpoints.health,
        "/explain": endpoints.explain,
    }
    assert tuple(handlers) == ENDPOINTS
    served = {
        path: _AsgiEndpoint(path, handler, args, metrics, budget, keys if path != OPEN else None, answered)
        for path, handler in handlers.items()
    }
    pages = _pages(families or own_families, keys, lifespan)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Endpoints are called without a framework in between, which took a fifth of a replica's time."""
        endpoint = served.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (endpoint or pages)(scope, receive, send)

    return app


def _pages(
    families: Callable[[], Awaitable[Families]], keys: ApiKeys | None, lifespan: Lifespan[Starlette] | None
) -> Starlette:
    """What is no endpoint: the page at /, probes, descriptions, metrics; and 404, 405 and redirects for the rest."""
    page = resources.files("rayapp.serve").joinpath("page.html").read_text(encoding="utf-8")

    async def metrics_page(_: PageRequest) -> PageResponse:
        return PageResponse(render(await families()), headers={"content-type": CONTENT_TYPE})

    async def shadow_page(request: PageRequest) -> PageResponse:
        try:
            if keys:
                keys.check(request.headers.get("authorization"))
        except RequestError as error:
            return _json_response({"error": str(error)}, error.status)
        return _json_response(shadow.report(await families()))

    async def never(_: PageRequest) -> PageResponse:
        raise AssertionError("POST to an endpoint does not come here")

    fixed = {
        "/": HTMLResponse(page),
        "/schema.json": _json_response(openapi.schema()),
        "/docs.json": _json_response(openapi.openapi()),
        **{path: PlainTextResponse("\n") for path in ("/livez", "/readyz", "/healthz")},
    }
    return Starlette(
        routes=[
            *(Route(path, never, methods=["POST"]) for path in ENDPOINTS),
            *(Route(path, _always(answer)) for path, answer in fixed.items()),
            Route("/metrics", metrics_page),
            Route("/shadow", shadow_page),
        ],
        lifespan=lifespan,
    )


def _always(answer: PageResponse) -> Callable[[PageRequest], Awaitable[PageResponse]]:
    async def same(_: PageRequest) -> PageResponse:
        return answer

    return same


def _json_response(content: Any, status: int = 200) -> PageResponse:
    return PageResponse(orjson.dumps(content), status, media_type="application/json")


class _Handlers:
    """Each request takes one reference to a served model and uses nothing else of the replica."""

    def __init__(self, replica: Replica, args: ServeArgs) -> None:
        self._replica = replica
        self._args = args
        self._explanations = Explanations(args)

    async def predict_image(self, call: Request) -> Response:
        predicted, files = await self._predict(call, "image", most=1)
        return _response_of(predicted, files, prediction(predicted.rows[0], predicted.served.class_names))

    async def predict_batch(self, call: Request) -> Response:
        predicted, files = await self._predict(call, "images")
        return _response_of(
            predicted, files, [prediction(row_k, predicted.served.class_names) for row_k in predicted.rows]
        )

    async def _predict(self, call: Request, field: str, *, most: int | None = None) -> tuple[Prediction, list[bytes]]:
        self._replica.check_room()  # before a body is read that cannot be answered
        # the body itself is not kept: its files are copies
        files = multipart.files(call.headers, await call.read(self._args.max_body_bytes), field, self._args)[:most]
        served = self._replica.route(self._client_key(call, files[0]))
        return await self._replica.predict(served, files), files

    def _client_key(self, call: Request, file: bytes) -> bytes:
        """What tells clients apart for the canary: the header that the settings name, the API key, or the image."""
        name = self._args.canary.key_header.lower().encode()
        return call.headers.get(name) or call.headers.get(b"authorization") or file

    async def get_model_info(self, call: Request) -> Response:
        await call.read(self._args.max_body_bytes)
        served = self._replica.served
        return Response(orjson.dumps(served.info()), headers=served.headers)

    async def health(self, call: Request) -> Response:
        await call.read(self._args.max_body_bytes)
        return Response(orjson.dumps(HEALTH))

    async def explain(self, call: Request) -> Response:
        body = await call.read(self._args.max_body_bytes)
        file = multipart.files(call.headers, body, "image", self._args)[0]
        served = self._replica.route(self._client_key(call, file))  # the one that answered this client
        png = await self._explanations.explain(served, file, multipart.text(call.headers, body, "class"))
        return Response(png, media_type=PNG, headers=served.headers)


def _response_of(predicted: Prediction, files: Sequence[bytes], content: Json | list[Json]) -> Response:
    return Response(orjson.dumps(content), headers=predicted.served.headers, predicted=predicted, files=files)


def prediction(row_k: Float32Array, class_names: Sequence[str]) -> Json:
    """One prediction as clients get it, from its probabilities (K,)."""
    probabilities = row_k.tolist()
    index = int(row_k.argmax())
    return {
        "predicted_class": class_names[index],
        "predicted_index": index,
        "confidence": probabilities[index],
        "probabilities": dict(zip(class_names, probabilities, strict=True)),
    }


class _AsgiEndpoint:
    """One endpoint as an ASGI application: keys, limits, errors, headers and counts around its handler."""

    def __init__(
        self,
        path: str,
        handler: Handler,
        args: ServeArgs,
        metrics: Metrics,
        budget: MemoryBudget,
        keys: ApiKeys | None,
        answered: Callable[[Request, Response, float], None],
    ) -> None:
        self._path = path
        self._handler = handler
        self._timeout_s = args.timeout_s
        self._metrics = metrics
        self._budget = budget
        self._keys = keys
        self._answered = answered
        self._num_running = 0
        metrics.watch_running(path, lambda: self._num_running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, self._num_running = perf_counter(), self._num_running + 1
        client = scope.get("client")
        call = Request(self._path, dict(scope["headers"]), receive, client[0] if client else "", self._budget)
        try:
            answer = await self._answer(call)
        except asyncio.CancelledError:  # Serve's own proxy does that when a client goes
            self._metrics.answered(self._path, 499, perf_counter() - started)
            raise
        finally:
            self._num_running -= 1
            self._budget.give_back(call.counted)
        headers = [
            (b"content-type", answer.media_type),
            (b"content-length", b"%d" % len(answer.body)),
            (b"server", SERVER),
            (b"x-bentoml-request-id", secrets.token_hex(8).encode()),
            *answer.headers,
        ]
        seconds = perf_counter() - started
        self._metrics.answered(self._path, answer.status, seconds)
        try:
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})
        except (OSError, RuntimeError) as error:  # uvicorn's, of a connection that the client has closed meanwhile
            log.debug("answer not sent path=%s reason=%s", self._path, error)
        self._answered(call, answer, seconds)

    async def _answer(self, call: Request) -> Response:
        """The handler's answer, or the error's. One of the two places where errors become sentences."""
        try:
            if self._keys:
                self._keys.check(call.headers.get(b"authorization", b"").decode("latin-1"))
            async with asyncio.timeout(self._timeout_s):
                return await self._handler(call)
        except multipart.ValidationError as error:
            return _error(error.status, str(error), detail=[error.detail])
        except RequestError as error:
            return _error(error.status, str(error))
        except TimeoutError:
            answer = _error(504, f"Not able to process the request in {self._timeout_s:g} seconds")
            # uvicorn would wait for the rest of the body, and for the next request after it
            return replace(answer, headers=(*answer.headers, CLOSE)) if call.is_arriving else answer
        except ClientGone:
            return Response(b"", 499)  # nobody is left to read it; nginx's number, for the metrics
        except Exception:
            log.exception("request failed path=%s", call.path)
            return _error(500, UNEXPECTED)


def _error(status: int, message: str, **more: Any) -> Response:
    headers = (MORE_HEADERS[status],) if status in MORE_HEADERS else ()
    return Response(orjson.dumps({"error": message, **more}), status, headers=headers, error=message)
