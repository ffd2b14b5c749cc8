"""A plugin of coverage.py that saves what was counted every second, for processes that are killed.

Ray ends its idle workers, and what ray.kill() names, by SIGKILL: they write nothing at their end. `make coverage` puts
this folder on PYTHONPATH, which Ray's processes inherit; nothing else may lie in it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from coverage import Coverage
from coverage.plugin_support import Plugins

EVERY_S = 1.0


def coverage_init(reg: Plugins, options: dict[str, Any]) -> None:
    """Called by coverage.py in each process that it counts."""
    threading.Thread(target=_save_again_and_again, name="save-coverage", daemon=True).start()


def _save_again_and_again() -> None:
    while True:
        time.sleep(EVERY_S)
        counting = Coverage.current()
        if counting is not None:
            counting.save()
