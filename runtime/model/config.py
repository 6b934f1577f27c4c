"""What a model folder's JSON files say that decoding needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from runtime._json import read_json
from runtime.errors import ModelFolderError


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes under the names of GPT-2's own `config.json`, and the ids that begin and end a text."""

    n_layer: int
    n_head: int
    n_embd: int
    n_positions: int
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: frozenset[int]

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head


def read_config(folder: Path) -> Config:
    """Read `config.json`, and `generation_config.json` where there is one: its eos and bos ids come first.

    Raises FileNotFoundError or ValueError naming the file and the key.
    """
    path = folder / "config.json"
    raw = read_json(path)
    if raw.get("model_type") != "gpt2":
        raise ModelFolderError(f"{path}: model_type is {raw.get('model_type')!r}; this runtime decodes 'gpt2' only")
    generation = folder / "generation_config.json"
    ids = raw | (read_json(generation) if generation.is_file() else {})
    sizes = {key: _count(path, raw, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    eos = ids.get("eos_token_id")
    ends = [_token_id(path, "eos_token_id", id_) for id_ in (eos if isinstance(eos, list) else [eos])]
    return Config(
        **sizes,
        bos_token_id=_token_id(path, "bos_token_id", ids.get("bos_token_id")),
        eos_token_ids=frozenset(id_ for id_ in ends if id_ is not None),
    )


def _count(path: Path, raw: dict[str, Any], key: str) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelFolderError(f"{path}: {key} is {value!r}; a whole number of at least 1 is expected")
    return value


def _token_id(path: Path, key: str, value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ModelFolderError(f"{path}: {key} has {value!r}; a token id or null is expected")
