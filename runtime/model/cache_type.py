"""Choose the type of the key-value cache: int8 where the folder has a graph for it, or fp32."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import get_args

from runtime.errors import ModelFolderError
from runtime.graph.attention import CacheType
from runtime.graph.gpt2 import GRAPH_FILES


def check_cache_type(cache: CacheType | None) -> None:
    """Raise ValueError for an unknown type."""
    if cache is not None and cache not in get_args(CacheType):
        raise ValueError(f"cache is {cache!r}; {', '.join(map(repr, get_args(CacheType)))} or None is expected")


def choose_cache_type(folder: Path, names: Collection[str], cache: CacheType | None) -> CacheType:
    """The type of cache for a folder with files of these names.

    cache: as in `runtime.load`; None takes int8 if the folder has its graph. Raises ModelFolderError if it is int8 and
    the folder has not.
    """
    if cache == "fp32":
        return cache
    if GRAPH_FILES["int8"] in names:
        return "int8"
    if cache is None:
        return "fp32"
    raise ModelFolderError(
        f"{folder} has no {GRAPH_FILES['int8']}, which cache='int8' needs: builds at int8 and int4 have one; build the "
        "model again, or leave cache out"
    )
