"""Texts sampled from the model, for vocabularies without tokens for the usual texts: proteins, chess, other scripts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from export.quantize import texts
from runtime.generation.loop import generate_pieces
from runtime.model.model import Model
from runtime.model.tokenizer import calls

NAME = "the model's own writing"
"""Named in the card and in `quality.json` in place of a file."""
N_TOKENS = 2048
"""The length of the text that quality is measured on."""
AMOUNT = texts.Amount(N_TOKENS, 1024)
LEAST_SHARE = 0.9
"""The share of a text's characters that the vocabulary must have tokens for, see `written_share`."""


def written_share(tokenizer: Tokenizer, text: str) -> float:
    """The share of a text's characters, without white space, that the vocabulary has tokens for.

    Where there is no token for a character, a tokenizer may raise an error, emit its unknown token, or drop the
    character; none of these counts.
    """
    try:
        encoding = calls.encode(tokenizer, text, whole=False)
    except ValueError:
        return 0.0
    unknown = _unknown_id(tokenizer)
    covered = np.zeros(len(text), np.bool_)
    for id_, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        covered[begin:end] |= id_ != unknown
    visible = np.array([not character.isspace() for character in text], np.bool_)
    return float(covered[visible].mean()) if visible.any() else 0.0


def can_write(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the vocabulary covers enough of the text to measure the model on it."""
    return written_share(tokenizer, text) >= LEAST_SHARE


def can_write_file(tokenizer: Tokenizer, path: Path) -> bool:
    """`can_write` for a file. Bytes that are not UTF-8 are replaced: `read_text` raises the error for them."""
    return can_write(tokenizer, path.read_text(encoding="utf-8", errors="replace"))


def check_written(tokenizer: Tokenizer, text: str, path: Path, option: str) -> None:
    """Raise ValueError for a text of a file that the vocabulary does not cover. option: the one that names the file."""
    share = written_share(tokenizer, text)
    if share < LEAST_SHARE:
        raise ValueError(
            f"the checkpoint's vocabulary has tokens for {share:.0%} of {path}, and {LEAST_SHARE:.0%} are needed; "
            f"name a text of what the model writes, or leave {option} out, for {NAME}"
        )


def write_text(folder: Path) -> list[int]:
    """Sample ids from the model in a folder at temperature 1, in texts as long as its context."""
    ids: list[int] = texts.write_texts(folder, AMOUNT).flatten().tolist()
    return ids


def write_prompt(model: Model, n_tokens: int, seed: int) -> list[int]:
    """Sample the ids of a prompt from the model."""
    row = texts.begin_text(model, n_tokens, seed)
    for _ in generate_pieces(model, [row]):
        pass
    return row.ids


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token; None for a tokenizer without one."""
    named = getattr(tokenizer.model, "unk_token", None)
    if named is not None:
        id_: int | None = tokenizer.token_to_id(named)
        return id_
    described: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return described
