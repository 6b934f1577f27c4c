"""Which files hold a checkpoint's weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
CURE = (
    "is a pickle, which is not read. With transformers and torch installed, this writes safetensors: python -c "
    "\"from transformers import GPT2LMHeadModel as M; M.from_pretrained('{name}').save_pretrained('DIR')\"; "
    "or --allow-pickle reads it, its tensors only, with torch"
)


def weight_files(folder: Path) -> Iterable[Path]:
    """The safetensors files of a checkpoint: `model.safetensors`, or the shards its index names.

    Raises FileNotFoundError, saying what to do, where some are missing; ValueError for an index that is none.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        if pickles := sorted(folder.glob(f"{Path(PICKLE).stem}*.bin")):
            raise FileNotFoundError(f"{pickles[0]} {CURE.format(name=folder)}")
        raise FileNotFoundError(f"{folder / SINGLE} is missing; transformers' save_pretrained writes one")
    return _shards(folder / INDEX)


def pickle_files(folder: Path) -> list[Path]:
    """The pickles of a checkpoint: `pytorch_model.bin`, or the shards its index names. Raises as `weight_files`."""
    if (folder / PICKLE).is_file():
        return [folder / PICKLE]
    if not (folder / PICKLE_INDEX).is_file():
        raise FileNotFoundError(f"{folder / PICKLE} is missing; --allow-pickle reads that file")
    return _shards(folder / PICKLE_INDEX)


def _shards(index: Path) -> list[Path]:
    names = shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names files that are missing: {', '.join(missing)}")
    return [index.parent / name for name in names]


def shard_names(index: Path) -> list[str]:
    """The files that an index names. Raises ValueError for one that is damaged, or names files of other folders."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of files with weights: {error!r}") from None
    if outside or not names:
        raise ValueError(f"{index} is not an index of files with weights: it names {', '.join(outside) or 'none'}")
    return names
