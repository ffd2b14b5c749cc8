"""The checkpoints of a run on its storage: which one a resumed run starts from."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from pyarrow.fs import FileSelector, FileSystem, FileType
from ray.train import Checkpoint

from rayapp.vision.loop import CHECKPOINT

log = logging.getLogger(__name__)
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's list of the run's checkpoints


def take_over(storage: str, name: str) -> Checkpoint | None:
    """The newest checkpoint of a stopped run that can be read; None where it has none. Others are removed.

    Ray's own list is not asked, and removed: a disk that was full when Ray wrote it leaves it empty, and Ray then
    refuses the run (2.60). A checkpoint that was cut short is passed over, and said.
    """
    files, root = FileSystem.from_uri(f"{storage.rstrip('/')}/{name}")
    entries = files.get_file_info(FileSelector(root, allow_not_found=True))
    if any(e.base_name == SNAPSHOT for e in entries):
        files.delete_file(f"{root}/{SNAPSHOT}")
    # their names hold the time they were made
    folders = sorted(e.path for e in entries if e.type == FileType.Directory and e.base_name.startswith("checkpoint_"))
    found: Checkpoint | None = None
    for folder in reversed(folders):
        checkpoint = Checkpoint(folder, filesystem=files)
        if found is None and _is_readable(checkpoint):
            found = checkpoint
        else:
            files.delete_dir(folder)
    return found


def _is_readable(checkpoint: Checkpoint) -> bool:
    try:
        with checkpoint.as_directory() as folder:
            torch.load(Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        log.warning("checkpoint %s cannot be read (%s): passed over", checkpoint.path, error)
        return False
    return True
