"""Surprisal of given texts, in bits: of every token, and of every word.

The surprisal of a token is -log2 of its probability, given all tokens before it. That of a word is the sum over its
tokens, with a correction where the tokens hold the space before a word rather than after it. Such tokens say that the
word before has ended, so the plain sum counts the end of a word to the next word. Corrected (Oh and Schuler, 2024,
arXiv 2406.10851; Pimentel and Meister, 2024, arXiv 2406.14561):

    P(word | context) = P(tokens of the word | context) * P(B | context, word) / P(B | context)

where B is the event that the next token begins a word or ends the text.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from runtime._checks import Prompt, check_count, check_valid_text
from runtime.errors import NoTokenizerError
from runtime.model.kv_cache import Logits
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.detokenizer import PieceDecoder
from runtime.scoring.windows import TEXTS_TOGETHER, Request, check_stride, run, windows
from runtime.scoring.words import Beginnings, Span, assign_tokens, find_spans, split_words, vocabulary
from runtime.tokenization.encode import encode_prompt

Floats = NDArray[np.float64]
_LN2 = math.log(2)


class Alternative(NamedTuple):
    """One of the likeliest tokens in the place of a token: its text, its id, and its surprisal in bits."""

    text: str
    id: int
    surprisal: float


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A token of a text.

    text: the characters that it is part of, as they stand in the text. Tokens that share one character have it each.
    span: begin and end of these characters in the text.
    surprisal: -log2 of its probability, in bits; None for the first token with bos=False.
    rank: 1 for the likeliest token; None where the surprisal is.
    entropy: of the distribution that the token is drawn from, in bits; None where the surprisal is.
    top: the likeliest tokens of that distribution, likeliest first.
    """

    text: str
    span: Span
    id: int
    surprisal: float | None
    rank: int | None
    entropy: float | None
    top: tuple[Alternative, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """A word of a text.

    text, span: without the white space around it.
    surprisal: in bits, over all its tokens; None where one of them has none, or the vocabulary has no token for it.
    tokens: its tokens are `.tokens[begin:end]` of the text.
    """

    text: str
    span: Span
    surprisal: float | None
    tokens: Span


@dataclasses.dataclass(frozen=True, repr=False)
class Surprisal:
    """What `runtime.surprisal` returns of a text."""

    text: str
    tokens: list[Token]
    words: list[Word]

    @property
    def total(self) -> float:
        """Surprisal of the text in bits: the sum over its tokens that have one."""
        return math.fsum(token.surprisal for token in self.tokens if token.surprisal is not None)

    def __repr__(self) -> str:
        return f"<Surprisal: {len(self.words)} words, {len(self.tokens)} tokens, {self.total:.1f} bits>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked of every text; see `runtime.surprisal`."""

    top: int = 0
    bos: bool = True
    word_correction: bool = True
    stride: int | None = None


def measure(
    model: Model,
    texts: Iterable[Prompt],
    settings: Settings,
    words: Iterable[Sequence[str] | None] | None = None,
    progress: Callable[[int], object] = lambda _n: None,
) -> Iterator[Surprisal]:
    """The surprisals of each text, in order, as groups of texts are done; see `runtime.surprisal`.

    progress: called with the number of characters that were measured since the last call.
    """
    _check(model, settings)
    pairs = zip(texts, itertools.repeat(None) if words is None else words, strict=words is not None)
    while group := list(itertools.islice(pairs, TEXTS_TOGETHER)):
        plans = [_plan(model, text, given, settings) for text, given in group]
        yield from _measure_group(model, plans, settings, progress)


def check_words(texts: Sequence[Prompt], words: object, *, is_one: bool) -> list[Sequence[str]] | None:
    """The list of words for each text. Raises TypeError or ValueError where there is not one for each."""
    if words is None:
        return None
    lists = [words] if is_one else words
    if not _are_lists(lists):
        expected = "a list of words" if is_one else "a list of words for each text"
        raise TypeError(f"words is {words!r}; {expected} is expected")
    if len(lists) != len(texts):
        raise ValueError(f"there are {len(texts)} texts and {len(lists)} lists of words; give one for each text")
    return list(lists)


def _are_lists(lists: object) -> TypeGuard[Sequence[Sequence[str]]]:
    return isinstance(lists, list | tuple) and all(isinstance(one, list | tuple) for one in lists)


def _check(model: Model, settings: Settings) -> None:
    check_count("top", settings.top, least=0)
    size = model.config.vocab_size
    if settings.top > size:
        raise ValueError(f"top is {settings.top}; the model has {size} tokens")
    for name in ("bos", "word_correction"):
        if not isinstance(getattr(settings, name), bool):
            raise TypeError(f"{name} is {getattr(settings, name)!r}; True or False is expected")
    check_stride(settings.stride, model.config.n_positions)


class _Plan:
    """A text with its tokens and words, and what is measured at each of them."""

    def __init__(self, text: str, ids: list[int], spans: list[Span], words: list[Span], lead: list[int]) -> None:
        self.text = text
        self.ids = ids
        self.spans = spans
        self.words = words
        self.tokens_of_words = assign_tokens(text, spans, words)
        # The tokens before the first one: without any, it is not predicted.
        self.lead = lead
        self.inputs = [*lead, *ids]
        self._n_measured = 0
        n = len(self.inputs)
        # Each entry is about what follows the input at its place; the last one has no target.
        self.surprisals: Floats = np.full(n, np.nan)
        self.ranks = np.zeros(n, np.int64)
        self.entropies: Floats = np.full(n, np.nan)
        self.ends: Floats = np.full(n, np.nan)
        self.top: list[tuple[Alternative, ...]] = [()] * n

    def targets(self, begin: int, end: int) -> NDArray[np.int64]:
        """The tokens that follow the inputs begin .. end; 0 after the last input."""
        return np.array([*self.inputs[begin + 1 : end + 1], 0][: end - begin], np.int64)

    def advance(self, n: int) -> int:
        """So many more inputs are measured; returns how many more characters of the text that is."""
        before = len(self.text) * self._n_measured // len(self.inputs)
        self._n_measured += n
        return len(self.text) * self._n_measured // len(self.inputs) - before

    def place(self, token: int) -> int:
        """Where the arrays say something of a token; -1 for the first one without a lead."""
        return token + len(self.lead) - 1


def _plan(model: Model, text: Prompt, words: Sequence[str] | None, settings: Settings) -> _Plan:
    if not isinstance(text, str):
        return _plan_of_ids(model, text, words, settings)
    check_valid_text(text)
    encoding = calls.encode(model.tokenizer, text, whole=False)
    ids = list(encoding.ids)
    if not ids:
        shown = repr(text if len(text) <= 40 else f"{text[:40]}...")
        raise ValueError(f"the text {shown} has no tokens of this model's vocabulary; give a text that has one")
    word_spans = split_words(text, words)
    spans = find_spans(text, ids, encoding.offsets, vocabulary(model).beginnings)
    return _Plan(text, ids, spans, word_spans, _lead(model) if settings.bos else [])


def _plan_of_ids(model: Model, ids: list[int], words: Sequence[str] | None, settings: Settings) -> _Plan:
    """The text is that of the ids, special tokens written out; a model without a tokenizer has none, and no words."""
    lead = _lead(model) if settings.bos else []
    if not model.has_tokenizer:
        if words is not None:
            raise NoTokenizerError(f"{model.folder} has no tokenizer, so its ids have no words; leave words out")
        return _Plan("", ids, [(0, 0)] * len(ids), [], lead)
    text, spans = write_ids(model, ids)
    return _Plan(text, ids, spans, split_words(text, words), lead)


def write_ids(model: Model, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of ids, and the characters that each is part of; several tokens of one character have its span."""
    decoder = PieceDecoder(model.tokenizer, skip_special_tokens=False)
    spans: list[Span] = []
    pieces: list[str] = []
    begin = 0
    for id_ in ids:
        piece = decoder.push(id_)
        pieces.append(piece)
        spans.append((begin, begin + len(piece)))
        begin += len(piece)
    pieces.append(decoder.flush())
    end = begin + len(pieces[-1])
    # A token without text of its own is part of the character that a later one completes.
    for index in reversed(range(len(spans))):
        if spans[index][0] == spans[index][1]:
            later = spans[index + 1] if index + 1 < len(spans) else (begin, end)
            spans[index] = (later[0], min(later[0] + 1, later[1]))
    return "".join(pieces), spans


def _lead(model: Model) -> list[int]:
    """What stands before the first token: what the tokenizer puts there, or bos_token_id."""
    try:
        return encode_prompt(model, "")
    except ValueError:
        raise ValueError(
            "this model has no beginning-of-text token to score the first token after; bos=False leaves it unscored"
        ) from None


def _measure_group(
    model: Model, plans: Sequence[_Plan], settings: Settings, progress: Callable[[int], object]
) -> Iterator[Surprisal]:
    texts, beginnings = vocabulary(model)
    boundary = _Boundary(beginnings if settings.word_correction else None)
    size = model.config.n_positions
    stride = check_stride(settings.stride, size, default=max(1, size // 2))
    requests: list[Request] = []
    begins: list[tuple[_Plan, int]] = []
    for plan in plans:
        for begin, end, n_new in windows(len(plan.inputs), size, stride, full=True):
            requests.append(Request(plan.inputs[begin:end], end - begin - n_new))
            begins.append((plan, begin))
    for block in run(model, requests):
        plan, begin = begins[block.request]
        at = begin + block.begin
        _record(plan, at, block.logits, boundary, settings.top, texts)
        progress(plan.advance(len(block.logits)))
    for plan in plans:
        yield Surprisal(plan.text, _tokens(plan), _words(plan, boundary))


class _Boundary:
    """The event that the next token begins a word or ends the text."""

    def __init__(self, found: Beginnings | None) -> None:
        self.mask = None if found is None else found.mask
        self._weights = None if found is None else found.mask.astype(np.float32)

    def surprisals(self, logits: Logits, weights: NDArray[np.float32], total: NDArray[np.float32]) -> Floats:
        """In bits, of each row; `weights` are exp(logits) and `total` their sums."""
        if self.mask is None or self._weights is None:
            return np.zeros(len(logits))
        mass = (weights @ self._weights).astype(np.float64)
        rows = np.flatnonzero(mass == 0)
        bits = np.log2(total) - np.log2(np.where(mass == 0, 1, mass))
        if len(rows):
            # Below the range of float32: sum again, relative to the likeliest of these tokens.
            likely = logits[rows][:, self.mask].astype(np.float64)
            most = likely.max(-1)
            sums = np.log(np.exp(likely - most[:, None]).sum(-1)) + most
            bits[rows] = np.log2(total[rows]) - sums / _LN2
        # The sum over all tokens and that over most of them are rounded differently.
        at_least_zero: Floats = np.maximum(bits, 0.0)
        return at_least_zero


def _record(plan: _Plan, at: int, logits: Logits, boundary: _Boundary, n_top: int, texts: dict[int, str]) -> None:
    """Measure the distributions after the inputs from `at` on: logits [n, n_vocab], which are overwritten."""
    n = len(logits)
    rows = slice(at, at + n)
    targets = plan.targets(at, at + n)
    logits -= logits.max(-1, keepdims=True)
    weights = np.exp(logits)
    total = weights.sum(-1)
    of_targets = logits[np.arange(n), targets]
    log_total = np.log(total.astype(np.float64))
    plan.surprisals[rows] = (log_total - of_targets) / _LN2
    plan.ranks[rows] = 1 + np.count_nonzero(logits > of_targets[:, None], axis=-1)
    plan.entropies[rows] = (log_total - np.einsum("ij,ij->i", weights, logits) / total) / _LN2
    plan.ends[rows] = boundary.surprisals(logits, weights, total)
    if n_top:
        for row in range(n):
            plan.top[at + row] = _likeliest(logits[row], log_total[row], n_top, texts)


def _likeliest(logits: Logits, log_total: float, n: int, texts: dict[int, str]) -> tuple[Alternative, ...]:
    ids = np.argpartition(-logits, n - 1)[:n]
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    bits = (log_total - logits[ids].astype(np.float64)) / _LN2
    return tuple(
        Alternative(texts.get(id_, ""), id_, one) for id_, one in zip(ids.tolist(), bits.tolist(), strict=True)
    )


def _tokens(plan: _Plan) -> list[Token]:
    # Lists, since an entry of an array takes several times as long to read.
    surprisals = plan.surprisals.tolist()
    ranks = plan.ranks.tolist()
    entropies = plan.entropies.tolist()
    tokens: list[Token] = []
    for index, (id_, span) in enumerate(zip(plan.ids, plan.spans, strict=True)):
        at = plan.place(index)
        text = plan.text[slice(*span)]
        if at < 0:
            tokens.append(Token(text, span, id_, None, None, None))
        else:
            tokens.append(Token(text, span, id_, surprisals[at], ranks[at], entropies[at], plan.top[at]))
    return tokens


def _words(plan: _Plan, boundary: _Boundary) -> list[Word]:
    surprisals = plan.surprisals.tolist()
    pairs = zip(plan.words, plan.tokens_of_words, strict=True)
    return [
        Word(plan.text[slice(*span)], span, _of_word(plan, tokens, boundary, surprisals), tokens)
        for span, tokens in pairs
    ]


def _of_word(plan: _Plan, tokens: Span, boundary: _Boundary, surprisals: Sequence[float]) -> float | None:
    """Surprisal of a word in bits. surprisals: `plan.surprisals` as a list."""
    begin, end = tokens
    first = plan.place(begin)
    if begin == end or first < 0:
        return None
    bits = math.fsum(surprisals[first : plan.place(end)])
    if boundary.mask is None:
        return bits
    # The end of this word, unless the next token goes on without a space, as that of a full stop does.
    if end == len(plan.ids) or boundary.mask[plan.ids[end]]:
        bits += float(plan.ends[plan.place(end)])
    # The end of the word before, which is given. No word stands before the first token.
    if begin > 0 and boundary.mask[plan.ids[begin]]:
        bits -= float(plan.ends[first])
    return bits
