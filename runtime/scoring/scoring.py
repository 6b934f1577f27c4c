"""Log-probabilities and perplexity of given text: P(output)."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime._math import log_softmax, perplexity
from runtime.errors import ContextLengthError
from runtime.model.model import Model
from runtime.model.prefill import cut
from runtime.prefixes.prefix import Prefix
from runtime.scoring.context import SharedContext
from runtime.tokenization.encode import check_fits, encode, encode_prompt, encode_whole

ScoreOverflow = Literal["error", "truncate_left"]
Chunk = tuple[NDArray[np.int64], NDArray[np.float32]]  # targets [n], log-probabilities [n, n_vocab]


@dataclasses.dataclass(frozen=True, repr=False)
class Score:
    """How likely the model finds a text: one entry a predicted token, natural logarithms."""

    ids: list[int]
    logprobs: list[float]
    # Whether every token was the likeliest in the pass that scores them. At int8 and int4 that pass over several ids
    # differs by about 0.04 in the log-probabilities from single steps, so a model's own greedy text may score False.
    is_greedy: bool
    greedy: list[bool] = dataclasses.field(default_factory=list)  # whether each one was
    n_truncated: int = 0  # tokens of the context left out by overflow "truncate_left"

    @property
    def logprob(self) -> float:
        """Log-probability of the whole: the sum."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-probability a token."""
        return perplexity(self.logprob, len(self.logprobs))

    def __repr__(self) -> str:
        return f"<Score: {len(self.ids)} tokens, logprob {self.logprob:.2f}, perplexity {self.perplexity:.2f}>"


class Pair(NamedTuple):
    """The ids of a context and of its continuation."""

    context_ids: list[int]
    ids: list[int]
    n_truncated: int = 0

    @property
    def length(self) -> int:
        """Tokens of both; a model takes n_positions + 1, since the last one is predicted only."""
        return len(self.context_ids) + len(self.ids)


def score(
    model: Model,
    continuations: Sequence[str],
    context: str,
    overflow: ScoreOverflow = "error",
    prefix: Prefix | None = None,
) -> list[Score]:
    """See `runtime.score`."""
    if prefix is not None:
        prefix.check(context, "context")
    if overflow not in ("error", "truncate_left"):
        raise ValueError(f"overflow is {overflow!r}; error or truncate_left")
    for text in (*continuations, *([context] if overflow == "error" else [])):
        check_fits(model, text, model.config.n_positions)
    pairs = [encode_pair(model, context, text) for text in continuations]
    return score_pairs(model, [fit_pair(pair, model.config.n_positions, overflow) for pair in pairs], prefix)


def encode_pair(model: Model, context: str, continuation: str) -> Pair:
    """Ids as lm-evaluation-harness has them (`TemplateLM._encode_pair`).

    White space at the end of the context moves to the continuation, whose ids are those of both together after as
    many as the context alone has. The context has the ids of a prompt that is continued: what the tokenizer puts
    around a text is around the context, so the score is that of what `runtime.generate` writes after it. An empty
    one is bos_token_id. Raises ValueError where the continuation is empty, or has no id of its own.
    """
    if not isinstance(context, str):
        raise TypeError(f"context is {context!r}; a text is expected")
    if not encode(model, continuation):
        what = "is empty" if not continuation else f"{continuation!r} has no token of this model's vocabulary"
        raise ValueError(f"the continuation {what}; there is nothing to score")
    head = context.rstrip()
    text = context[len(head) :] + continuation
    if not head:
        return Pair(encode_prompt(model, ""), encode(model, text))
    ids = encode(model, head + text)[len(encode(model, head)) :]
    if not ids:
        raise ValueError(
            f"the continuation {continuation!r} is part of the context's last token; "
            "cut the two between words, the space going to the continuation"
        )
    return Pair(encode_prompt(model, head), ids)


def fit_pair(pair: Pair, n_positions: int, overflow: ScoreOverflow) -> Pair:
    """The pair, cut at the left of its context where `overflow` allows it. Raises ValueError where it is too long."""
    n, n_own = pair.length, len(pair.ids)
    n_over = n - n_positions - 1  # the last id is predicted only
    if n_over <= 0:
        return pair
    if n_own > n_positions:
        raise ContextLengthError(
            f"a continuation of {n_own} tokens passes the model's {n_positions} positions; "
            "score_text scores longer texts, in windows",
            n,
            n_positions=n_positions,
        )
    if overflow == "error":
        raise ContextLengthError(
            f"a context of {n - n_own} tokens and a continuation of {n_own} are {n_over} more than the "
            f"{n_positions + 1} that a model of {n_positions} positions scores at once; shorten the context, or "
            "overflow='truncate_left' leaves its beginning out",
            n,
            n_positions=n_positions,
        )
    return Pair(pair.context_ids[n_over:], pair.ids, n_over)


def score_pairs(model: Model, pairs: Sequence[Pair], prefix: Prefix | None = None) -> list[Score]:
    """Score every continuation; pairs with the same context share its pass, with the result each has alone.

    `prefix`: what it has in common with a context is not computed again.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(tuple(pair.context_ids), []).append(index)
    scores: dict[int, Score] = {}
    for context_ids, group in groups.items():
        room = max(len(pairs[index].ids) for index in group) - 1
        shared = SharedContext(model, context_ids, room, len(group), prefix)
        for index in group:
            one = score_after(shared, pairs[index].ids)
            scores[index] = dataclasses.replace(one, n_truncated=pairs[index].n_truncated)
    return [scores[index] for index in range(len(pairs))]


def score_after(shared: SharedContext, ids: Sequence[int]) -> Score:
    """Score ids that follow a context."""
    return _collect(ids, _continuation_chunks(shared, ids))


def score_ids(model: Model, ids: Sequence[int], stride: int | None = None) -> Score:
    """Score every id but the first; see `runtime.score_text`."""
    if len(ids) < 2:
        raise ValueError(f"the text is {len(ids)} token(s) long; the first is not predicted, so two are needed")
    return _collect(ids[1:], log_probabilities(model, ids, stride))


def score_text(model: Model, text: str, stride: int | None = None) -> Score:
    """See `runtime.score_text`."""
    return score_ids(model, encode_whole(model, text), stride)


def _continuation_chunks(shared: SharedContext, ids: Sequence[int]) -> Iterator[Chunk]:
    yield np.array(ids[:1], np.int64), log_softmax(shared.logits[None])
    done = 1
    for logits in shared.extend(shared.begin(), ids[:-1]) if len(ids) > 1 else ():
        yield np.array(ids[done : done + len(logits)], np.int64), log_softmax(logits)
        done += len(logits)


def _collect(ids: Sequence[int], chunks: Iterable[Chunk]) -> Score:
    logprobs: list[float] = []
    greedy: list[bool] = []
    for targets, chunk in chunks:
        logprobs += chunk[np.arange(len(targets)), targets].tolist()
        greedy += (chunk.argmax(-1) == targets).tolist()
    return Score(list(ids), logprobs, all(greedy), greedy)


def log_probabilities(model: Model, ids: Sequence[int], stride: int | None = None) -> Iterator[Chunk]:
    """Targets [n] and log-probabilities [n, n_vocab] of every id but the first, a chunk at a time.

    Windows of n_positions ids begin every `stride` ids (default n_positions) and predict the ids one further; each
    id is scored in the first window that reaches it.
    """
    size = model.config.n_positions
    stride = check_stride(stride, size)
    scored = 0  # ids[1 : scored + 1] are done
    for begin in range(0, len(ids) - 1, stride):
        end = min(begin + size, len(ids) - 1)
        yield from window_log_probabilities(model, ids[begin : end + 1], skip=scored - begin)
        scored = end
        if end == len(ids) - 1:
            return


def check_stride(stride: int | None, n_positions: int) -> int:
    """The stride, n_positions for None. Raises TypeError or ValueError for one that is none."""
    if stride is None:
        return n_positions
    if isinstance(stride, bool) or not isinstance(stride, numbers.Integral):
        raise TypeError(f"stride is {stride!r}; a whole number is expected")
    if not 1 <= stride <= n_positions:
        raise ValueError(f"stride is {stride}; it must be from 1 to n_positions, {n_positions}")
    return int(stride)


def window_log_probabilities(model: Model, ids: Sequence[int], skip: int) -> Iterator[Chunk]:
    """Targets and log-probabilities of ids[skip + 1:], given all ids before each; at most n_positions + 1 ids."""
    inputs, targets = ids[:-1], np.array(ids[1:], np.int64)
    cache = model.new_cache(len(inputs))
    end = 0
    for chunk in cut(inputs):
        end += len(chunk)
        n_wanted = min(len(chunk), end - skip)
        if n_wanted < 1:
            cache.extend(chunk)
        else:
            logits = cache.extend(chunk, keep=n_wanted)
            yield targets[end - n_wanted : end], log_softmax(logits)
