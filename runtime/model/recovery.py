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

# The name, in the workspace, of the model that a build replaces, until the build removes it.
REPLACED = "replaced"
# The lock of the workspace; it exists as long as any other file there.
LOCK = "lock"
# A build that is alive needs far less time than all pauses between its two renames.
_PAUSE = 0.1  # seconds
_N_PAUSES = 10
_SUFFIX = ".building"


def workspace_of(output: Path) -> Path:
    """The folder in which a build of this output works."""
    return output.parent / f".{output.name}{_SUFFIX}"


def is_ours(folder: Path) -> bool:
    """Whether a path is a folder, not a link, and on POSIX belongs to this user.

    Other users who may write beside a model could put anything there under the name of its workspace.
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
    """Whether a folder was left by a build of this user: it has the lock of a build, or is empty.

    Another folder of this user, which somebody else moved to this name, has no lock.
    """
    lock = work / LOCK
    return is_ours(work) and (not any(work.iterdir()) or (lock.is_file() and not lock.is_symlink()))


def recover(output: Path) -> None:
    """Put back the model that a killed build of this user left aside.

    Does nothing if there is none, if a model is in its place, or if the folder above is read-only.
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
