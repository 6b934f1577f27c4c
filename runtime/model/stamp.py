"""Stamps: that the files of a model folder were found whole, kept outside the folder, in the user's cache.

A stamp holds size, time of change and digest of each file. Where the cache cannot be written there is none, and every
load checks every byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

ENVIRONMENT = "GPT2_EDGE_CACHE"
# a file changed again within the tick of its clock has the same time: FAT counts in 2 s
_SETTLED_NS = 2_000_000_000

Stamp = dict[str, list[int | str]]  # size, mtime_ns, SHA-256, by name


def make(stats: Mapping[str, os.stat_result], checksums: Mapping[str, str]) -> Stamp:
    """The stamp of files with these checksums."""
    return {name: [stat.st_size, stat.st_mtime_ns, checksums.get(name, "")] for name, stat in stats.items()}


def read(folder: str) -> Stamp | None:
    """What was recorded of a folder (its real path), None where nothing was."""
    try:
        kept = json.loads(_path(folder).read_bytes())
        return dict(kept["files"]) if kept["folder"] == folder else None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):  # RuntimeError: the user has no home
        return None


def write(folder: str, stamp: Stamp) -> None:
    """Record it, unless a file changed so lately that another change might not show."""
    if any(abs(time.time_ns() - int(changed)) < _SETTLED_NS for _, changed, _ in stamp.values()):
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({"folder": folder, "files": stamp}), encoding="utf-8")
        beside.replace(path)


def _path(folder: str) -> Path:
    return _cache() / "verified" / f"{sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _cache() -> Path:
    """$GPT2_EDGE_CACHE, else gpt2-edge in the system's place for caches."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gpt2-edge"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpt2-edge"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2-edge"
