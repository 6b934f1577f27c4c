"""What a model writes itself, for vocabularies that cannot write our texts: proteins, chess moves, other scripts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from export.quantize import texts
from runtime.generation.loop import generate_pieces
from runtime.model.model import Model
from runtime.model.tokenizer import calls

NAME = "the model's own writing"  # in place of a file's name
N_TOKENS = 2048  # of a text to measure on
AMOUNT = texts.Amount(N_TOKENS, 1024)
LEAST_SHARE = 0.9


def written_share(tokenizer: Tokenizer, text: str) -> float:
    """The share of a text's characters, white space apart, that the vocabulary has tokens for; unknown ones count not.

    A tokenizer may refuse what it has no token for, put an unknown token in its place, or drop it.
    """
    try:
        encoding = calls.encode(tokenizer, text, whole=False)
    except ValueError:
        return 0.0
    unknown, covered = _unknown_id(tokenizer), np.zeros(len(text), np.bool_)
    for id_, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        covered[begin:end] |= id_ != unknown
    visible = np.array([not character.isspace() for character in text], np.bool_)
    return float(covered[visible].mean()) if visible.any() else 0.0


def can_write(tokenizer: Tokenizer, text: str) -> bool:
    """Whether what a model makes of the text says anything about it."""
    return written_share(tokenizer, text) >= LEAST_SHARE


def can_write_file(tokenizer: Tokenizer, path: Path) -> bool:
    """`can_write` for a file; what is not UTF-8 is for others to refuse."""
    return can_write(tokenizer, path.read_text(encoding="utf-8", errors="replace"))


def check_written(tokenizer: Tokenizer, text: str, path: Path, option: str) -> None:
    """Raise ValueError for a file's text that says nothing about a model of this vocabulary; `option` named it."""
    share = written_share(tokenizer, text)
    if share < LEAST_SHARE:
        raise ValueError(
            f"the checkpoint's vocabulary has tokens for {share:.0%} of {path}, and {LEAST_SHARE:.0%} are needed; "
            f"name a text of what the model writes, or leave {option} out, for {NAME}"
        )


def write_text(folder: Path) -> list[int]:
    """Ids that the model in a folder samples from its own distribution, in texts as long as its context."""
    ids: list[int] = texts.write_texts(folder, AMOUNT).flatten().tolist()
    return ids


def write_prompt(model: Model, n_tokens: int, seed: int) -> list[int]:
    """Ids of a beginning that the model wrote."""
    row = texts.begin_text(model, n_tokens, seed)
    for _ in generate_pieces(model, [row]):
        pass
    return row.ids


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token for what the vocabulary does not have, where there is one."""
    named = getattr(tokenizer.model, "unk_token", None)
    if named is not None:
        id_: int | None = tokenizer.token_to_id(named)
        return id_
    described: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return described
