"""What each of our processes inside Serve does when it starts."""

from __future__ import annotations

import logging
import warnings


def log_to_stderr() -> None:
    """Our log lines go where Ray collects those of its workers: a replica is a process of its own, so this is main."""
    logger = logging.getLogger("rayapp")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    # Pillow's words about a damaged file quote it: a client would write lines of its own, each remembered for ever
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
