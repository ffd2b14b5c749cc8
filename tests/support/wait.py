"""What happens a moment later, and is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(holds: Callable[[], object], *, patience_s: float = 20, pause_s: float = 0.005) -> bool:
    """Whether something holds before the patience is over; looks again after each pause."""
    end = time.monotonic() + patience_s
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(pause_s)
    return bool(held)


def until(
    holds: Callable[[], object],
    *,
    patience_s: float = 120,
    pause_s: float = 0.05,
    otherwise: Callable[[], str] = lambda: "it did not happen in time",
) -> None:
    """Returns once something holds; fails with what otherwise says when the patience is over."""
    assert eventually(holds, patience_s=patience_s, pause_s=pause_s), otherwise()
