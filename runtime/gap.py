"""Where a system cannot exchange two folders in one step, a build replaces a model by two renames.

One that is killed between them leaves the earlier model aside, whole, and nothing in its place.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

REPLACED = "replaced"  # in the workspace: the model that a build replaces, until it is cleared away
_MOMENT, _N_MOMENTS = 0.1, 10  # seconds: a build that lives needs far less


def workspace_of(output: Path) -> Path:
    """Where a build of this folder works."""
    return output.parent / f".{output.name}.building"


def close_gap(output: Path) -> None:
    """Put a model back that a killed build left aside; nothing where there is none, or one is in its place."""
    aside = workspace_of(output) / REPLACED
    for _ in range(_N_MOMENTS):
        if output.exists() or not aside.is_dir():
            return
        time.sleep(_MOMENT)
    with contextlib.suppress(OSError):  # of two that mend one is late, and a folder may be read-only
        aside.rename(output)


def close_gaps(place: Path) -> None:
    """Do so for every model in a folder."""
    for work in place.glob(".*.building"):
        close_gap(place / work.name.removeprefix(".").removesuffix(".building"))
