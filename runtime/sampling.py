"""Logits -> token: pure numpy. Order and edge cases are those of transformers' logits processors."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.options import MAX_SEED, Options

Logits = NDArray[np.float32]
Sampler = Callable[[Logits, int], int]  # logits [n_vocab], step -> token id


def make_sampler(options: Options) -> Sampler:
    """The sampler these options describe: greedy at temperature 0, else temperature, top_k, top_p, then a draw.

    The draw depends on seed and step alone, whatever was drawn before. A seed of None is drawn afresh.
    """
    if options.temperature == 0:
        return lambda logits, _step: int(logits.argmax())
    seed = secrets.randbelow(MAX_SEED) if options.seed is None else options.seed

    def sample(logits: Logits, step: int) -> int:
        scaled = (logits.astype(np.float64) - logits.max()) / options.temperature
        return draw(softmax(keep_top_p(keep_top_k(scaled, options.top_k), options.top_p)), uniform(seed, step))

    return sample


def keep_top_k(logits: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """All but the k largest become -inf; those equal to the k-th stay, as in transformers. 0 is off."""
    if not 0 < k < len(logits):
        return logits
    least = np.partition(logits, -k)[-k]
    return np.where(logits < least, -np.inf, logits)


def keep_top_p(logits: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """All but the smallest set of likeliest tokens whose probability reaches p become -inf. 1.0 is off.

    Holtzman et al., The Curious Case of Neural Text Degeneration, 2020.
    """
    if p == 1:
        return logits
    candidates = np.flatnonzero(logits > -np.inf)
    order = candidates[np.argsort(-logits[candidates], kind="stable")]
    before = np.cumsum(softmax(logits[order]))
    n_kept = 1 + int(np.count_nonzero(before[:-1] < p))
    kept = np.full_like(logits, -np.inf)
    kept[order[:n_kept]] = logits[order[:n_kept]]
    return kept


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities; -inf becomes 0."""
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) for this seed and step: Philox, a counter-based generator (Salmon et al., 2011)."""
    bits = np.random.Philox(key=seed, counter=[0, 0, 0, step]).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def draw(probabilities: NDArray[np.float64], u: float) -> int:
    """The token whose part of [0, 1) holds u, the vocabulary laid end to end in order of id."""
    cumulative = np.cumsum(probabilities)
    at = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return min(at, int(np.flatnonzero(probabilities)[-1]))  # rounding may carry u past the last
