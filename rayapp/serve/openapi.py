"""How the service describes itself: schema.json for the BentoML client, docs.json (OpenAPI) for people and tools.

Both equal in meaning what BentoML 1.4.39 wrote for the replaced service. The client reads `type: file` to know that it
must send multipart, and drops answer keys that an output schema does not list, so outputs list none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

NAME = "VisionClassifier"
_OBJECT: Json = {"type": "object", "additionalProperties": True}
_FILE: Json = {"type": "file", "format": "image", "pil": True}
_BINARY: Json = {"type": "string", "format": "binary"}


@dataclass(frozen=True)
class _Api:
    name: str
    purpose: str
    returns: str
    argument: str = ""
    meaning: str = ""
    several: bool = False

    @property
    def output(self) -> Json:
        """The shape of the answer."""
        return {"type": "array", "items": _OBJECT} if self.several else _OBJECT

    def input(self, file: Json) -> Json:
        """The shape of the request, with file standing for an uploaded image."""
        schema: Json = {"type": "object", "title": "Input", "properties": {}}
        if self.argument:
            shape = {"type": "array", "items": file} if self.several else file
            schema["properties"] = {self.argument: {**shape, "title": self.argument.capitalize()}}
            schema["required"] = [self.argument]
        return schema

    @property
    def description(self) -> str:
        """The docstring of the replaced service, indented as it was."""
        arguments = ["Args:", f"    {self.argument}: {self.meaning}", ""] if self.argument else []
        lines = [self.purpose, "", *arguments, "Returns:", f"    {self.returns}"]
        return "\n" + "".join(f"{' ' * 8}{line}\n" if line else "\n" for line in lines) + " " * 8


_APIS = (
    _Api("get_model_info", "Get information about the loaded model.", "Dictionary with model metadata"),
    _Api("health", "Health check endpoint.", "Dictionary with health status"),
    _Api(
        "predict_batch", "Predict classes for a batch of images.", "List of prediction dictionaries",
        argument="images", meaning="List of PIL Images", several=True,
    ),
    _Api(
        "predict_image", "Predict class for a single image.", "Dictionary with prediction results",
        argument="image", meaning="PIL Image",
    ),
)  # fmt: skip
_PROBES = {
    "healthz": "Answers 200 when the service is healthy. Deprecated since Kubernetes 1.16: use livez and readyz.",
    "livez": "Answers 200 when the process lives.",
    "readyz": "Answers 200 when the service takes requests.",
    "metrics": "Metrics for Prometheus.",
}


def schema() -> Json:
    """The body of /schema.json."""
    return {
        "name": NAME,
        "type": "service",
        "description": "Vision model classifier service.",
        "routes": [
            {
                "name": api.name,
                "route": f"/{api.name}",
                "batchable": False,
                "input": api.input(_FILE),
                "output": api.output,
                "is_task": False,
            }
            for api in _APIS
        ],
        "paths": {f"/{api.name}": {"mounted": False} for api in _APIS},
    }


def openapi() -> Json:
    """The body of /docs.json."""
    return {
        "openapi": "3.0.2",
        "info": {"title": NAME, "version": "None", "description": "Classifies images. The page at / tries it out."},
        "servers": [{"url": "."}],
        "tags": [
            {"name": "Service APIs", "description": "Inference."},
            {"name": "Infrastructure", "description": "Probes and metrics."},
        ],
        "paths": {
            **{f"/{name}": {"get": _probe(meaning)} for name, meaning in _PROBES.items()},
            **{f"/{api.name}": {"post": _operation(api)} for api in _APIS},
        },
        "components": {
            "schemas": {
                **{f"{api.name}__Input": {**api.input(_FILE), "title": f"{api.name}__Input"} for api in _APIS},
                **{name: _error(name, meaning) for name, meaning in _ERRORS.values()},
            }
        },
    }


_ERRORS = {
    "400": ("InvalidArgument", "Bad Request"),
    "404": ("NotFound", "Not Found"),
    "500": ("InternalServerError", "Internal Server Error"),
}


def _operation(api: _Api) -> Json:
    media = "multipart/form-data" if api.argument else "application/json"
    ok = {"description": "Successful Response", "content": {"application/json": {"schema": api.output}}}
    return {
        "operationId": f"{NAME}__{api.name}",
        "x-bentoml-name": api.name,
        "description": api.description,
        "tags": ["Service APIs"],
        "requestBody": {"content": {media: {"schema": api.input(_BINARY)}}},
        "responses": {
            "200": ok,
            **{
                code: {
                    "description": meaning,
                    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
                }
                for code, (name, meaning) in _ERRORS.items()
            },
        },
    }


def _probe(meaning: str) -> Json:
    return {
        "tags": ["Infrastructure"],
        "description": meaning,
        "responses": {"200": {"description": "Successful Response"}},
    }


def _error(name: str, meaning: str) -> Json:
    return {
        "type": "object",
        "title": name,
        "description": meaning,
        "required": ["error"],
        "properties": {
            "error": {"type": "string", "title": "Message"},
            "detail": {"type": "string", "title": "Error Detail"},
        },
    }
