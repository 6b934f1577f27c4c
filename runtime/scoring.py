"""Log-probabilities and perplexity of given text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.generation import PREFILL_STEP
from runtime.model import Model
from runtime.text import encode


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely the model finds a text: one entry a predicted token, natural logarithms."""

    ids: list[int]
    logprobs: list[float]
    is_greedy: bool  # whether every token was the likeliest

    @property
    def logprob(self) -> float:
        """Log-probability of the whole: the sum."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-probability a token."""
        return math.exp(-self.logprob / len(self.logprobs))


def score_ids(model: Model, ids: Sequence[int], stride: int | None = None) -> Score:
    """Score every id but the first; see `runtime.score_text`."""
    if len(ids) < 2:
        raise ValueError(f"the text is {len(ids)} token(s) long; the first is not predicted, so two are needed")
    logprobs: list[float] = []
    is_greedy = True
    for targets, chunk in log_probabilities(model, ids, stride):
        logprobs += chunk[np.arange(len(targets)), targets].tolist()
        is_greedy = is_greedy and bool((chunk.argmax(-1) == targets).all())
    return Score(list(ids[1:]), logprobs, is_greedy)


def score_text(model: Model, text: str, stride: int | None = None) -> Score:
    """See `runtime.score_text`."""
    return score_ids(model, encode(model, text), stride)


def log_probabilities(
    model: Model, ids: Sequence[int], stride: int | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Targets [n] and log-probabilities [n, n_vocab] of every id but the first, a chunk at a time.

    Windows of n_positions ids begin every `stride` ids (default n_positions) and predict the ids one further; each
    id is scored in the first window that reaches it.
    """
    size = model.config.n_positions
    stride = size if stride is None else stride
    if not 1 <= stride <= size:
        raise ValueError(f"stride is {stride}; it must be from 1 to n_positions, {size}")
    scored = 0  # ids[1 : scored + 1] are done
    for begin in range(0, len(ids) - 1, stride):
        end = min(begin + size, len(ids) - 1)
        yield from _window(model, ids[begin : end + 1], skip=scored - begin)
        scored = end
        if end == len(ids) - 1:
            return


def _window(model: Model, ids: Sequence[int], skip: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Targets and log-probabilities of ids[skip + 1:], given all ids before each."""
    inputs, targets = ids[:-1], np.array(ids[1:], np.int64)
    cache = model.new_cache(len(inputs))
    for begin in range(0, len(inputs), PREFILL_STEP):
        chunk = inputs[begin : begin + PREFILL_STEP]
        end = begin + len(chunk)
        n_wanted = min(len(chunk), end - skip)
        if n_wanted < 1:
            cache.extend(chunk)
        else:
            logits = cache.extend(chunk, keep=n_wanted)
            yield targets[end - n_wanted : end], log_softmax(logits)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, n_vocab] -> logarithms of the probabilities, computed in the given array."""
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits
