"""Recovery of a model that a killed build left aside.

Where a system cannot exchange two folders in one step, a build replaces a model by two renames: the old folder is moved
into the build's workspace, then the new one takes its place. A build that is killed between the two leaves no model at
its place and the old one, whole, in the workspace. The next load or build puts it back.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

# In the workspace: the model that a build replaces, until the build removes it.
REPLACED = "replaced"
# In the workspace, as long as anything else is.
LOCK = "lock"
# A build that is alive needs far less time between its two renames.
_PAUSE = 0.1  # seconds
_N_PAUSES = 10
_SUFFIX = ".building"


def workspace_of(output: Path) -> Path:
    """Where a build of this folder works."""
    return output.parent / f".{output.name}{_SUFFIX}"


def is_ours(folder: Path) -> bool:
    """Whether a path is a folder and no link, and on POSIX belongs to this user.

    Where others may write beside a model, they may put anything under the name of its workspace.
    """
    try:
        found = folder.lstat()
    except OSError:
        return False
    # A junction on Windows is a folder with a reparse tag.
    if not stat.S_ISDIR(found.st_mode) or getattr(found, "st_reparse_tag", False):
        return False
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def is_workspace(work: Path) -> bool:
    """Whether a folder is what a build of this user left: it has the build's lock, or nothing at all.

    A folder of this user that somebody else moved to this name has no lock.
    """
    lock = work / LOCK
    return is_ours(work) and (not any(work.iterdir()) or (lock.is_file() and not lock.is_symlink()))


def recover(output: Path) -> None:
    """Put the model back that a killed build of this user left aside.

    Does nothing where there is none, where a model is in place, and where the folder above is read-only.
    """
    aside = workspace_of(output) / REPLACED
    for _ in range(_N_PAUSES):
        if output.exists() or not (is_ours(aside) and is_workspace(aside.parent)):
            return
        time.sleep(_PAUSE)
    # Another process may have done it in the meantime.
    with contextlib.suppress(OSError):
        aside.rename(output)


def recover_all(place: Path) -> None:
    """Recover every model of a folder of models."""
    for work in place.glob(f".*{_SUFFIX}"):
        recover(place / work.name.removeprefix(".").removesuffix(_SUFFIX))
