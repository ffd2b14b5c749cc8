"""How the service describes itself: schema.json for the BentoML client, docs.json (OpenAPI) for people and tools.

Both equal in meaning what BentoML 1.4.39 wrote for the replaced service. The client reads `type: file` to know that it
must send multipart, and drops answer keys that an output schema does not list, so outputs list none.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

Json = dict[str, Any]


def schema() -> Json:
    """The body of /schema.json."""
    return _document("schema.json")


def openapi() -> Json:
    """The body of /docs.json."""
    return _document("docs.json")


def _document(name: str) -> Json:
    content: Json = json.loads(resources.files("rayapp.serve").joinpath(name).read_text(encoding="utf-8"))
    return content
