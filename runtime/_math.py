"""Softmax and what is derived from it: pure functions of numpy arrays. Logarithms are natural."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = TypeVar("Floats", bound=NDArray[np.floating[Any]])


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities along the last axis of logits [..., n], in a new array of the same shape and type.

    >>> log_softmax(np.log(np.array([1.0, 3.0]))).round(3).tolist()
    [-1.386, -0.288]
    """
    logprobs: Floats = np.subtract(logits, logits.max(-1, keepdims=True), order="C")
    rows = logprobs.reshape(-1, logits.shape[-1])
    # One row at a time: the exponentials of a whole chunk of a prompt would take as much memory again.
    for row in range(len(rows)):
        rows[row] -= np.log(np.exp(rows[row]).sum())
    return logprobs


def softmax(scores: Floats) -> Floats:
    """Probabilities along the last axis of scores [..., n], in a new array; -inf becomes 0.

    >>> softmax(np.log(np.array([1.0, 3.0]))).round(3).tolist()
    [0.25, 0.75]
    """
    weights: Floats = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights


def perplexity(logprob: float, n: int) -> float:
    """Exponential of the mean negative log-probability of n tokens, whose log-probabilities sum to `logprob`.

    Infinite where it is beyond the largest float.

    >>> round(perplexity(math.log(0.25), 2), 6)
    2.0
    """
    try:
        return math.exp(-logprob / n)
    except OverflowError:
        return math.inf


def likeliest(logprobs: NDArray[np.float32], n: int) -> dict[int, float]:
    """The n likeliest ids and their log-probabilities, likeliest first; logprobs: [n_vocab], n at most n_vocab.

    >>> likeliest(np.array([-2.5, -0.5, -1.5], np.float32), 2)
    {1: -0.5, 2: -1.5}
    """
    ids = np.argpartition(-logprobs, n - 1)[:n]
    return {int(id_): float(logprobs[id_]) for id_ in ids[np.argsort(-logprobs[ids], kind="stable")]}
