"""Where a system cannot exchange two folders in one step, a build replaces a model by two renames.

One that is killed between them leaves the earlier model aside, whole, and nothing in its place.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

REPLACED = "replaced"  # in the workspace: the model that a build replaces, until it is cleared away
LOCK = "lock"  # there too, as long as anything else is
_MOMENT, _N_MOMENTS = 0.1, 10  # seconds: a build that lives needs far less


def workspace_of(output: Path) -> Path:
    """Where a build of this folder works."""
    return output.parent / f".{output.name}.building"


def is_ours(folder: Path) -> bool:
    """Whether a folder is no link, and on POSIX this user's own.

    Where others may write beside a model, they may put anything under the name of its workspace.
    """
    try:
        found = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or getattr(found, "st_reparse_tag", False):  # Windows' junctions have a tag
        return False
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def is_workspace(work: Path) -> bool:
    """Whether a folder is what a build of this user left: it has the build's lock, or nothing at all.

    A folder of the user's that others moved to this name has no lock.
    """
    lock = work / LOCK
    return is_ours(work) and (not any(work.iterdir()) or (lock.is_file() and not lock.is_symlink()))


def close_gap(output: Path) -> None:
    """Put a model back that a killed build of this user left aside; nothing where there is none, or one is in place."""
    aside = workspace_of(output) / REPLACED
    for _ in range(_N_MOMENTS):
        if output.exists() or not (is_ours(aside) and is_workspace(aside.parent)):
            return
        time.sleep(_MOMENT)
    with contextlib.suppress(OSError):  # of two that mend one is late, and a folder may be read-only
        aside.rename(output)


def close_gaps(place: Path) -> None:
    """Do so for every model in a folder."""
    for work in place.glob(".*.building"):
        close_gap(place / work.name.removeprefix(".").removesuffix(".building"))
