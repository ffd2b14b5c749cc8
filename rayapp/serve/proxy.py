"""What Serve's HTTP proxy must do differently for the answers to be those of the contract.

Serve reads the variable of CONTROLLER_OPTIONS where its proxies start, and imports this file there: it imports little.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

# For serve.start(controller_options=...) and serve_configs/*.yaml: the proxies inherit the controller's variables.
CONTROLLER_OPTIONS = {
    "runtime_env": {"env_vars": {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rayapp.serve.proxy:middlewares"}}
}
# Serve lets any client set its own timeout and outlive its own disconnection; ours are for the operator to set.
_SERVES_OWN = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")


def middlewares() -> list[Middleware]:
    """What Serve puts around its proxy."""
    return [Middleware(ContractHeaders)]


class ContractHeaders:
    """The `server` header that the application sets is the only one, and clients cannot change Serve's time limits."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        # uvicorn puts `server: uvicorn` before the headers of the answer and Serve has no setting for it. The list is
        # on the object that uvicorn makes for each request, whose method `send` is.
        cycle = getattr(send, "__self__", None)
        if default := getattr(cycle, "default_headers", None):
            cycle.default_headers = [(name, value) for name, value in default if name != b"server"]  # type: ignore[union-attr]
        if scope["type"] == "http":
            headers = [(name, value) for name, value in scope["headers"] if name not in _SERVES_OWN]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)
