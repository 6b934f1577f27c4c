"""Perplexity of long texts by the two protocols whose numbers are published."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtime._math import log_softmax, perplexity
from runtime.model.model import Model
from runtime.scoring.windows import Request, Window, check_stride, run, windows
from runtime.tokenization.encode import beginning_of_text, encode, encode_whole, has_beginning_of_text

# Called with how much is done, and how much there is to do.
Progress = Callable[[int, int], object]


@dataclasses.dataclass(frozen=True)
class Rolling:
    """The log-likelihood of texts, and the perplexities per token, word and byte that follow from it.

    logprob: natural logarithm, summed over all texts.
    """

    logprob: float
    n_tokens: int
    n_words: int
    n_bytes: int

    @property
    def token_perplexity(self) -> float:
        """Exponential of the mean negative log-probability per token."""
        return perplexity(self.logprob, self.n_tokens)

    @property
    def word_perplexity(self) -> float:
        """The same per word; words are separated by white space."""
        return perplexity(self.logprob, self.n_words)

    @property
    def byte_perplexity(self) -> float:
        """The same per byte of UTF-8."""
        return perplexity(self.logprob, self.n_bytes)

    @property
    def bits_per_byte(self) -> float:
        """Mean negative log-probability per byte, to base 2."""
        return -self.logprob / self.n_bytes / math.log(2)


def measure_strided(model: Model, text: str, stride: int | None = None, progress: Progress | None = None) -> float:
    """Perplexity per token by the recipe in transformers' documentation, "Perplexity of fixed-length models".

    Windows of n_positions tokens begin every `stride` tokens (default n_positions; the published numbers are for
    1,024 and 512). A window scores the tokens that earlier windows have not scored, with the labels shifted inside
    the window: without overlap its first token is not predicted. The mean loss of a window is weighted with the
    number of its new tokens, less one.
    Raises ValueError for a text of fewer than two tokens or a stride outside 1 .. n_positions.
    """
    ids = encode_whole(model, text)
    size = model.config.n_positions
    if len(ids) < 2:
        raise ValueError(f"the text is {len(ids)} token(s) long; the first is not predicted, so two are needed")
    logprob = 0.0
    n_counted = 0
    for begin, end, n_new in windows(len(ids), size, check_stride(stride, size)):
        # A single new token has no weight, and without overlap it has no loss either.
        if n_new > 1:
            first = max(0, end - n_new - begin - 1)
            [logprobs] = _logprobs(model, [ids[begin:end]], [first])
            logprob += (n_new - 1) * float(np.mean(logprobs))
            n_counted += n_new - 1
        if progress:
            progress(end, len(ids))
    return perplexity(logprob, n_counted)


def measure_rolling(
    model: Model,
    texts: Sequence[str],
    rewrite: Callable[[str], str] = lambda text: text,
    progress: Progress | None = None,
) -> Rolling:
    """lm-evaluation-harness's `loglikelihood_rolling` of several texts, and its counts of words and bytes.

    Each text begins with bos_token_id (`<|endoftext|>`). Where a model has none, the first token of each text is not
    predicted, as in the loss of transformers. Windows of n_positions tokens are disjoint but for one token of context;
    the last one reaches back to be full. Short windows share passes.
    rewrite: makes what the model reads from a text. Words and bytes are counted in the text as it was, as the harness
        does with WikiText.
    Raises ValueError where there is no token to predict.
    """
    beginning = [beginning_of_text(model)] if has_beginning_of_text(model) else []
    sequences = [[*beginning, *encode(model, rewrite(text))] for text in texts]
    n_tokens = sum(max(0, len(ids) - 1) for ids in sequences)
    if not n_tokens:
        needed = "" if beginning else ": this model has no beginning-of-text token, so two tokens are needed"
        raise ValueError(f"there is no text to measure{needed}")
    parts: list[list[int]] = []
    firsts: list[int] = []
    for ids in sequences:
        for begin, end, n_new in rolling_windows(len(ids) - 1, model.config.n_positions):
            parts.append(ids[begin : end + 1])
            firsts.append(end - begin - n_new)
    logprob = math.fsum(map(math.fsum, _logprobs(model, parts, firsts, progress)))
    n_words = sum(len(re.split(r"\s+", text)) for text in texts)
    return Rolling(logprob, n_tokens, n_words, sum(len(text.encode()) for text in texts))


def rolling_windows(n: int, size: int) -> Iterator[Window]:
    """The harness's windows over `n` tokens to predict, given the token before each."""
    return windows(n, size, size, full=True)


def _logprobs(
    model: Model, parts: Sequence[Sequence[int]], firsts: Sequence[int], progress: Progress | None = None
) -> list[list[float]]:
    """Of every part, the log-probabilities of ids[first + 1:], each given all ids before it."""
    requests = [Request(ids[:-1], first) for ids, first in zip(parts, firsts, strict=True)]
    n_all = sum(len(ids) - first for ids, first in requests)
    n_done = 0
    found: list[list[float]] = [[] for _ in parts]
    for block in run(model, requests):
        n = len(block.logits)
        targets = np.array(parts[block.request][block.begin + 1 : block.begin + 1 + n], np.int64)
        found[block.request] += log_softmax(block.logits)[np.arange(n), targets].tolist()
        n_done += n
        if progress:
            progress(n_done, n_all)
    return found
