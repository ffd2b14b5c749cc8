"""A home that was moved or copied: MLflow's database keeps absolute paths, which are brought to where it lies now."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

log = logging.getLogger(__name__)

ARTIFACTS = "artifacts"  # the folder beside the database, as Home has it
# Every column of MLflow 3.17's tables that holds a place of artifacts.
COLUMNS = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]


def follow(connection: sqlite3.Connection, database: Path) -> None:
    """Let what the database says of its artifacts mean the folder beside it, if that is where they lie.

    Places of another kind (s3://, folders that somebody chose) stay as they are, and so does all where MLflow has made
    no tables yet.
    """
    now = (database.parent / ARTIFACTS).absolute()
    if not now.is_dir():
        return
    try:
        places = [row[0] for row in connection.execute("SELECT DISTINCT artifact_location FROM experiments")]
    except sqlite3.OperationalError:  # no tables yet
        return
    for before in places:
        if _has_moved(connection, before or "", now):
            for table, column in COLUMNS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - names from the list above
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (now.as_uri(), len(before) + 1, before, len(before) + 1, f"{before}/"),
                )
            connection.commit()
            log.warning("this home was moved: artifacts of %s are looked for in %s now", before, now)


def _has_moved(connection: sqlite3.Connection, before: str, now: Path) -> bool:
    """Whether before is the artifacts folder of a home that lies elsewhere now: gone there, or with files here."""
    parts = urlsplit(before)
    folder = Path(url2pathname(parts.path))
    if parts.scheme != "file" or folder.name != ARTIFACTS or before == now.as_uri():
        return False
    if not folder.exists():
        return True
    if folder.samefile(now):  # by a link or a mount
        return False
    made = connection.execute("SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM logged_models")
    below = [uri.removeprefix(f"{before}/") for (uri,) in made if (uri or "").startswith(f"{before}/")]
    return any((now / place).exists() for place in below)
