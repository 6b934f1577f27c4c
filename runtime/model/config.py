"""Read the part of a model folder's `config.json` and `generation_config.json` that decoding needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from runtime._json import read_json, shown
from runtime.errors import ModelFolderError
from runtime.graph.architecture import MODEL_TYPES
from runtime.graph.head import Head, read_head

# The largest allowed value of each size. The largest of OpenAI's models has 48 layers of width 1600; GPT-2 models with
# 13 billion weights have width 5120. A larger value is a mistake or an attack, and must not lead to an allocation.
LIMITS = {
    "n_layer": 1_000,
    "n_head": 4_096,
    "n_embd": 65_536,
    "n_positions": 1_048_576,
    "vocab_size": 16_777_216,
    "n_inner": 262_144,
}
SIZES = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
# Ids may lie outside the vocabulary, as in fine-tunes that kept GPT-2's defaults with a smaller vocabulary.
MAX_ID = 2**31 - 1
MAX_END_IDS = 1_024


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model, under the names of GPT-2's `config.json`, and the ids that begin and end a text.

    head: of a classifier; None for a language model.
    """

    n_layer: int
    n_head: int
    n_embd: int
    n_positions: int
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: frozenset[int]
    head: Head | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head


def read_config(folder: Path) -> Config:
    """Read `config.json`, and the bos and eos ids of `generation_config.json`, which take precedence if it exists.

    Raises FileNotFoundError, or ValueError naming the file and the key, also for a size beyond `LIMITS`.
    """
    path = folder / "config.json"
    raw = read_json(path)
    if raw.get("model_type") not in MODEL_TYPES:
        raise ModelFolderError(
            f"{path}: model_type is {shown(raw.get('model_type'))}; this runtime decodes "
            f"{' and '.join(map(repr, MODEL_TYPES))} only"
        )
    generation = folder / "generation_config.json"
    ids = raw | (read_json(generation) if generation.is_file() else {})
    sizes = {key: _size(path, raw, key) for key in SIZES}
    try:
        head = read_head(raw)
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from None
    return Config(
        **sizes,
        bos_token_id=_token_id(path, "bos_token_id", ids.get("bos_token_id")),
        eos_token_ids=_end_ids(path, ids.get("eos_token_id")),
        head=head,
    )


def check_size(key: str, value: object) -> int:
    """Check a size. Raises ValueError unless it is a whole number from 1 to `LIMITS[key]`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {shown(value)}; a whole number of at least 1 is expected")
    if value > LIMITS[key]:
        raise ValueError(f"{key} is {shown(value)}; at most {LIMITS[key]:,} is allowed")
    return value


def check_token_id(key: str, value: object) -> int | None:
    """Check a token id or None. Raises ValueError for another value, or an id beyond `MAX_ID`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} has {shown(value)}; a token id or null is expected")
    if abs(value) > MAX_ID:
        raise ValueError(f"{key} has {shown(value)}; no token id is larger than {MAX_ID:,}")
    return value


def check_end_ids(key: str, value: object) -> list[int]:
    """The ids in `eos_token_id`, which may be one id, a list or null. Raises ValueError for another value."""
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_END_IDS:
        raise ValueError(f"{key} has {len(values):,} ids; at most {MAX_END_IDS:,} are allowed")
    ids = [check_token_id(key, one) for one in values]
    return [id_ for id_ in ids if id_ is not None]


def _size(path: Path, raw: dict[str, Any], key: str) -> int:
    try:
        return check_size(key, raw.get(key))
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from None


def _token_id(path: Path, key: str, value: object) -> int | None:
    try:
        return check_token_id(key, value)
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from None


def _end_ids(path: Path, value: object) -> frozenset[int]:
    try:
        return frozenset(check_end_ids("eos_token_id", value))
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from None
