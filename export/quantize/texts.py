"""The text that calibration reads: written by the model itself, or the user's own.

A text that the model has written suits it whatever its language and subject (Williams et al. 2024, "Self-calibration
for Language Model Quantization and Pruning", arXiv 2410.17170).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from runtime.generation.loop import BATCH_SIZE, generate_pieces
from runtime.generation.row import Place, Row
from runtime.model.memory import CachedModel, cache_bytes
from runtime.model.model import Model
from runtime.options import Options

Ids = NDArray[np.int64]
LEAST_TOKENS = 2000
"""How many tokens the user's own text must have at least."""
CACHE_BYTES = 320_000_000
"""Memory for keys and values while texts are written; it limits how many are written at once."""


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much text is read: `n_tokens`, in texts of `longest` tokens, or of n_positions where that is smaller."""

    n_tokens: int
    longest: int

    def length(self, n_positions: int) -> int:
        """The number of tokens of one text."""
        return min(n_positions, self.longest)


AMOUNTS = {
    # Statistics of channels need few tokens, but whole contexts, since they depend on the position.
    "int8": Amount(8192, 1024),
    # GPTQ needs second moments of all pairs of channels. Half as many tokens lose a little; twice as many gain little.
    "int4": Amount(16_384, 1024),
}


def texts_at_once(config: CachedModel, length: int) -> int:
    """How many texts of `length` tokens are written at once: as many as `CACHE_BYTES` allow, at least one."""
    return max(1, min(BATCH_SIZE, CACHE_BYTES // cache_bytes(config, length, 1)))


def write_texts(folder: Path, amount: Amount) -> Ids:
    """Sample texts from the model in a folder: ids [n_texts, n_tokens].

    Raises ValueError for a model whose logits are NaN or infinite.
    """
    with Model(folder) as model:
        length = amount.length(model.config.n_positions)
        rows = [begin_text(model, length, seed) for seed in range(math.ceil(amount.n_tokens / length))]
        with tqdm(total=len(rows) * (length - 1), desc="      text", unit="token") as bar:
            at_once = texts_at_once(model.config, length) if model.is_fused else 1
            for _ in generate_pieces(model, rows, at_once):
                bar.update()
    return np.array([row.ids for row in rows])


def begin_text(model: Model, length: int, seed: int) -> Row:
    """A row that samples a text of exactly `length` tokens from the model's own distribution, at temperature 1.

    It begins with bos_token_id, or with a random token if the vocabulary has no such token.
    """
    bos = model.config.bos_token_id
    n_vocab = model.config.vocab_size
    first = bos if bos is not None and 0 <= bos < n_vocab else int(np.random.default_rng(seed).integers(n_vocab))
    options = Options(temperature=1.0, max_new_tokens=length - 1, min_new_tokens=length - 1, seed=seed)
    return Row(model, [first], options, Place())


def cut_text(ids: list[int], n_positions: int, amount: Amount) -> Ids:
    """Cut the ids of a long text into texts [n_texts, n_tokens], evenly spaced over it; a shorter rest is left out."""
    length = amount.length(n_positions)
    whole: Ids = np.array(ids[: len(ids) // length * length], np.int64).reshape(-1, length)
    wanted = math.ceil(amount.n_tokens / length)
    if len(whole) <= wanted:
        return whole
    chosen: Ids = whole[np.linspace(0, len(whole) - 1, wanted).round().astype(int)]
    return chosen
