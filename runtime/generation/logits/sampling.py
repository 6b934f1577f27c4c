"""Logits to an id: pure numpy, in the order and with the edge cases of transformers' logits warpers."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime._math import softmax
from runtime.options import MAX_SEED, Options

Logits = NDArray[np.float32]
Scores = NDArray[np.float64]
FEW = (128, 2048)  # likeliest tokens that are sorted before all are
Sampler = Callable[[Logits, int], int]  # logits [n_vocab], step -> token id


def draw_seed() -> int:
    """A fresh seed."""
    return int.from_bytes(os.urandom(8)) & MAX_SEED


def make_sampler(options: Options, seed: int, sample_index: int = 0) -> Sampler:
    """Greedy at temperature 0, else temperature, top_k, top_p, min_p, typical_p, and a draw.

    The draw depends on seed, sample index and step alone, whatever was drawn before.
    """
    if options.temperature == 0:
        return lambda logits, _step: int(logits.argmax())

    def sample(logits: Logits, step: int) -> int:
        # A tiny temperature makes all but the largest -inf.
        with np.errstate(over="ignore"):
            scores = (logits.astype(np.float64) - logits.max()) / options.temperature
        scores = keep_top_p(keep_top_k(scores, options.top_k), options.top_p)
        scores = keep_typical_p(keep_min_p(scores, options.min_p), options.typical_p)
        return draw(softmax(scores), uniform(seed, step, sample_index))

    return sample


def keep_top_k(scores: Scores, k: int) -> Scores:
    """All but the k largest become -inf; those equal to the k-th stay, as in transformers. 0 is off."""
    if not 0 < k < len(scores):
        return scores
    least = np.partition(scores, -k)[-k]
    return np.where(scores < least, -np.inf, scores)


def keep_top_p(scores: Scores, p: float) -> Scores:
    """All but the smallest set of likeliest tokens whose probability reaches p become -inf. 1.0 is off.

    Holtzman et al., The Curious Case of Neural Text Degeneration, 2020.
    """
    if p == 1:
        return scores
    probabilities = softmax(scores)
    order = _likeliest_first(scores, probabilities, p)
    return _keep_until(scores, order, probabilities[order], p)


def _likeliest_first(scores: Scores, probabilities: Scores, p: float) -> NDArray[np.int64]:
    """Ids in order of probability, equal ones by id: the first few where these reach p, else all candidates.

    Sorting a whole vocabulary takes longer than a pass through a small model.
    """
    for n in FEW:
        if n >= len(probabilities):
            break
        few = np.sort(np.argpartition(-probabilities, n)[:n])
        least = probabilities[few].min()
        # Others that are as likely as the least of the few may be missing.
        surely = few[probabilities[few] > least]
        if probabilities[surely].sum() > p:
            order: NDArray[np.int64] = surely[np.argsort(-probabilities[surely], kind="stable")]
            return order
    candidates = np.flatnonzero(scores > -np.inf)
    ordered: NDArray[np.int64] = candidates[np.argsort(-scores[candidates], kind="stable")]
    return ordered


def keep_min_p(scores: Scores, p: float) -> Scores:
    """Tokens less likely than p times the likeliest become -inf. 0.0 is off. Nguyen et al., Min-p Sampling, 2024."""
    if p == 0:
        return scores
    probabilities = softmax(scores)
    return np.where(probabilities < p * probabilities.max(), -np.inf, scores)


def keep_typical_p(scores: Scores, p: float) -> Scores:
    """Keep the tokens whose surprise is nearest the entropy until their probability reaches p. 1.0 is off.

    Meister et al., Locally Typical Sampling, 2022.
    """
    if p == 1:
        return scores
    candidates = np.flatnonzero(scores > -np.inf)
    probabilities = softmax(scores[candidates])
    # The surprise of a probability of 0 is infinite.
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        entropy = float(np.sum(np.where(probabilities > 0, probabilities * surprise, 0)))
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    return _keep_until(scores, candidates[order], probabilities[order], p)


def _keep_until(scores: Scores, order: NDArray[np.int64], probabilities: Scores, p: float) -> Scores:
    """Keep the first of `order` whose probabilities reach p together, one at least."""
    n_kept = 1 + int(np.count_nonzero(np.cumsum(probabilities)[:-1] < p))
    kept = np.full_like(scores, -np.inf)
    kept[order[:n_kept]] = scores[order[:n_kept]]
    return kept


def uniform(seed: int, step: int, sample_index: int = 0) -> float:
    """A number in [0, 1) from these arguments alone: Philox, a counter-based generator (Salmon et al., 2011)."""
    bits = np.random.Philox(key=seed, counter=[0, 0, sample_index, step]).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def draw(probabilities: Scores, u: float) -> int:
    """The id whose share of [0, 1) holds u, where the shares of all ids follow one another in order of id."""
    cumulative = np.cumsum(probabilities)
    at = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    # Rounding may carry u past the last one that is possible.
    return min(at, int(np.flatnonzero(probabilities)[-1]))
