"""Logits -> log-probabilities: natural logarithms, under the model's own distribution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, n_vocab] -> logarithms of the probabilities, computed in the given array."""
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits


def likeliest(logprobs: NDArray[np.float32], n: int) -> dict[int, float]:
    """The n likeliest ids and their log-probabilities [n_vocab], likeliest first."""
    ids = np.argpartition(-logprobs, n - 1)[:n]
    return {int(id_): float(logprobs[id_]) for id_ in ids[np.argsort(-logprobs[ids], kind="stable")]}
