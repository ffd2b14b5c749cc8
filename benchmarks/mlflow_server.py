"""An MLflow server that can be stopped, frozen and started again."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import servers


class MlflowServer:
    """`mlflow server` on a database, which can be stopped, frozen and started again on its port."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.database = f"sqlite:///{folder / 'mlflow.db'}"
        self.artifacts = folder / "served-artifacts"
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = servers.Command(
            words=[
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                "--workers", "1", "--backend-store-uri", self.database, "--artifacts-destination", str(self.artifacts),
            ],
            ready="GET /health",
        )  # fmt: skip
        self._log = log
        self._stack = contextlib.ExitStack()
        self._server: servers.Server | None = None

    def start(self) -> None:
        """Return once it answers."""
        self._server = self._stack.enter_context(servers.running(self._command, self._log, port=self.port))

    def stop(self) -> None:
        """End it."""
        self._stack.close()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections and answers nothing inside the with block."""
        assert self._server is not None
        family = self._server.processes()
        for process in family:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in family:
                process.send_signal(signal.SIGCONT)
