"""Log-probabilities and perplexity of given texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime._checks import Prompt
from runtime._math import log_softmax, perplexity
from runtime.errors import ContextLengthError
from runtime.model.model import Model
from runtime.prefixes.prefix import Prefix
from runtime.scoring.context import SharedContext
from runtime.scoring.windows import Request, check_stride, run, windows
from runtime.tokenization.encode import check_fits, encode, encode_prompt, encode_whole, ids_of_prompt
from runtime.tokenization.token_texts import token_texts

ScoreOverflow = Literal["error", "truncate_left"]
Chunk = tuple[NDArray[np.int64], NDArray[np.float32]]  # targets [n], log-probabilities [n, n_vocab]
# Pairs of up to so many inputs run as a whole and share passes. In longer ones the context costs more than the
# continuations, so continuations of the same context share its pass instead.
SHORT_PAIR = 64


@dataclasses.dataclass(frozen=True, repr=False)
class Score:
    """How likely the model finds a text: one entry for each predicted token, natural logarithms.

    ids: the tokens that are predicted.
    logprobs: the log-probability of each, given all tokens before it.
    is_greedy: whether every token was the likeliest in the pass that scores it. At int8 and int4 the log-probabilities
        of such a pass differ by about 0.04 from those of single steps, so a model's own greedy text may score False.
    greedy: the same for each token.
    n_truncated: tokens of the context that overflow "truncate_left" left out.
    tokens: the text of each of ids by itself, `�` for bytes that are part of a character; none where the model has no
        tokenizer.

    >>> Score([5, 6], [-1.0, -3.0], is_greedy=False).logprob
    -4.0
    """

    ids: list[int]
    logprobs: list[float]
    is_greedy: bool
    greedy: list[bool] = dataclasses.field(default_factory=list)
    n_truncated: int = 0
    tokens: list[str] = dataclasses.field(default_factory=list)

    @property
    def logprob(self) -> float:
        """Log-probability of all tokens together: the sum."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-probability per token."""
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
        """Number of tokens. A model takes n_positions + 1, since the last one is predicted but is no input."""
        return len(self.context_ids) + len(self.ids)


def score(
    model: Model,
    continuations: Sequence[Prompt],
    context: Prompt,
    overflow: ScoreOverflow = "error",
    prefix: Prefix | None = None,
) -> list[Score]:
    """See `runtime.score`."""
    if prefix is not None:
        prefix.check(context, "context")
    if overflow not in ("error", "truncate_left"):
        raise ValueError(f"overflow is {overflow!r}; error or truncate_left")
    for text in (*continuations, *([context] if overflow == "error" else [])):
        if isinstance(text, str):
            check_fits(model, text, model.config.n_positions)
    pairs = [encode_pair(model, context, text) for text in continuations]
    return score_pairs(model, [fit_pair(pair, model.config.n_positions, overflow) for pair in pairs], prefix)


def encode_pair(model: Model, context: Prompt, continuation: Prompt) -> Pair:
    """The ids of a context and its continuation. Where one of them is ids, they are taken as they are.

    Two texts are cut as by lm-evaluation-harness (`TemplateLM._encode_pair`).
    White space at the end of the context moves to the continuation. Context and continuation are tokenized together,
    and the continuation has the ids after the first n, where n is the number of ids of the context alone. Special
    tokens that the tokenizer adds to a text are added to the context, as `runtime.generate` adds them to a prompt. An
    empty context is bos_token_id.
    Raises ValueError where the continuation is empty or has no token of its own, and for an empty context where the
    model has no bos_token_id.
    """
    if not isinstance(continuation, str):
        return Pair(ids_of_prompt(model, context), continuation)
    own = encode(model, continuation)
    if not own:
        what = "is empty" if not continuation else f"{continuation!r} has no token of this model's vocabulary"
        raise ValueError(f"the continuation {what}; there is nothing to score")
    if not isinstance(context, str):
        return Pair(context, own)
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
    # The last id is predicted but is no input.
    n_over = n - n_positions - 1
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
    """Score every continuation. Each has the result that it has alone, to the last bit.

    Short pairs share passes. Longer pairs with the same context share the pass over that context.
    prefix: the tokens that it has in common with a context are not computed again.
    """
    short: dict[int, Pair] = {}
    long: dict[int, Pair] = {}
    for index, pair in enumerate(pairs):
        is_short = model.is_fused and pair.length - 1 <= SHORT_PAIR
        (short if is_short else long)[index] = pair
    scores = _score_whole(model, short) | _score_on_contexts(model, long, prefix)
    return [_told(model, scores[index], pair.n_truncated) for index, pair in enumerate(pairs)]


def _told(model: Model, score: Score, n_truncated: int = 0) -> Score:
    """The score with the texts of its tokens, and how many of the context were left out."""
    return dataclasses.replace(score, n_truncated=n_truncated, tokens=token_texts(model, score.ids))


def _score_whole(model: Model, pairs: Mapping[int, Pair]) -> dict[int, Score]:
    """Scores of short pairs by index: context and continuation are inputs of one pass."""
    # The last id is no input, so pairs that differ in it alone share their inputs.
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, pair in pairs.items():
        groups.setdefault((*pair.context_ids, *pair.ids[:-1]), []).append(index)
    members = list(groups.values())
    requests = [
        Request(inputs, min(len(pairs[index].context_ids) for index in group) - 1) for inputs, group in groups.items()
    ]
    records = {index: _Record(pair.ids) for index, pair in pairs.items()}
    for block in run(model, requests):
        logprobs = log_softmax(block.logits)
        for index in members[block.request]:
            n_before = len(pairs[index].context_ids) - 1 - block.begin
            records[index].add(logprobs[max(0, n_before) :])
    return {index: record.score() for index, record in records.items()}


def _score_on_contexts(model: Model, pairs: Mapping[int, Pair], prefix: Prefix | None) -> dict[int, Score]:
    """Scores of pairs by index: each context takes passes of its own, and each continuation follows it."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, pair in pairs.items():
        groups.setdefault(tuple(pair.context_ids), []).append(index)
    scores: dict[int, Score] = {}
    for context_ids, group in groups.items():
        room = max(len(pairs[index].ids) for index in group) - 1
        shared = SharedContext(model, context_ids, room, len(group), prefix)
        for index in group:
            scores[index] = score_after(shared, pairs[index].ids)
    return scores


def score_after(shared: SharedContext, ids: Sequence[int]) -> Score:
    """Score ids that follow a context."""
    record = _Record(ids)
    record.add(log_softmax(shared.logits[None].copy()))
    if len(ids) > 1:
        for logits in shared.extend(shared.begin(), ids[:-1]):
            record.add(log_softmax(logits))
    return record.score()


def score_ids(model: Model, ids: Sequence[int], stride: int | None = None) -> Score:
    """Score every id but the first; see `runtime.score_text`."""
    return score_sequences(model, [ids], stride)[0]


def score_text(model: Model, text: str, stride: int | None = None) -> Score:
    """See `runtime.score_text`."""
    return score_texts(model, [text], stride)[0]


def score_texts(model: Model, texts: Sequence[Prompt], stride: int | None = None) -> list[Score]:
    """See `runtime.score_text`; short texts share passes."""
    ids = [encode_whole(model, text) if isinstance(text, str) else text for text in texts]
    return score_sequences(model, ids, stride)


def score_sequences(model: Model, sequences: Sequence[Sequence[int]], stride: int | None = None) -> list[Score]:
    """Score every id but the first of each sequence.

    Windows of n_positions ids begin every `stride` ids (default n_positions) and predict the ids one further; each id
    is scored in the first window that reaches it. Raises ValueError for a sequence of fewer than two ids.
    """
    size = model.config.n_positions
    stride = check_stride(stride, size)
    requests: list[Request] = []
    records: list[_Record] = []
    owners: list[int] = []
    for owner, ids in enumerate(sequences):
        _check_two(ids)
        for begin, end, n_new in windows(len(ids) - 1, size, stride):
            requests.append(Request(ids[begin:end], end - begin - n_new))
            records.append(_Record(ids[end - n_new + 1 : end + 1]))
            owners.append(owner)
    for block in run(model, requests):
        records[block.request].add(log_softmax(block.logits))
    of_owner: list[list[_Record]] = [[] for _ in sequences]
    for owner, record in zip(owners, records, strict=True):
        of_owner[owner].append(record)
    return [_told(model, _join(parts).score()) for parts in of_owner]


def _check_two(ids: Sequence[int]) -> None:
    if len(ids) < 2:
        raise ValueError(f"the text is {len(ids)} token(s) long; the first is not predicted, so two are needed")


class _Record:
    """What is known of ids that are predicted one after the other."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.logprobs: list[float] = []
        self.greedy: list[bool] = []

    def add(self, logprobs: NDArray[np.float32]) -> None:
        """Log-probabilities [n, n_vocab] of all ids in the place of the next n ids, or of those that are left."""
        begin = len(self.logprobs)
        targets = np.array(self.ids[begin : begin + len(logprobs)], np.int64)
        rows = logprobs[: len(targets)]
        self.logprobs += rows[np.arange(len(targets)), targets].tolist()
        self.greedy += (rows.argmax(-1) == targets).tolist()

    def score(self) -> Score:
        return Score(self.ids, self.logprobs, all(self.greedy), self.greedy)


def _join(parts: Sequence[_Record]) -> _Record:
    joined = _Record([])
    for part in parts:
        joined.ids += part.ids
        joined.logprobs += part.logprobs
        joined.greedy += part.greedy
    return joined


def log_probabilities(model: Model, ids: Sequence[int], stride: int | None = None) -> Iterator[Chunk]:
    """Targets [n] and log-probabilities [n, n_vocab] of every id but the first, a chunk at a time.

    The windows are those of `score_sequences`.
    """
    size = model.config.n_positions
    for begin, end, n_new in windows(len(ids) - 1, size, check_stride(stride, size)):
        yield from window_log_probabilities(model, ids[begin : end + 1], skip=end - begin - n_new)


def window_log_probabilities(model: Model, ids: Sequence[int], skip: int) -> Iterator[Chunk]:
    """Targets and log-probabilities of ids[skip + 1:], given all ids before each; at most n_positions + 1 ids."""
    for block in run(model, [Request(ids[:-1], skip)]):
        begin = block.begin + 1
        targets = np.array(ids[begin : begin + len(block.logits)], np.int64)
        yield targets, log_softmax(block.logits)
