"""Where the ids that speculative decoding verifies come from: a draft model, or the row's own text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.model.kv_cache import Logits
from runtime.model.model import Model
from runtime.model.prefill import cut
from runtime.model.resolve import ModelOrPath, resolve
from runtime.model.tokenizer import calls

NGRAM_SIZES = (3, 2)  # the longer is looked for first
Guess = Callable[[Logits, Sequence[int]], int]  # logits [n_vocab], the ids before -> the id that follows


class Proposer(Protocol):
    """Proposes ids for one row."""

    def propose(self, ids: Sequence[int], n: int) -> list[int]:
        """Up to n ids that may follow `ids`, which are those of the call before and more."""


class Lookup:
    """Prompt lookup: what followed the last ids where they last occurred (Saxena, Prompt Lookup Decoding, 2023).

    >>> Lookup().propose([1, 2, 3, 4, 5, 9, 1, 2, 3, 4], 8)
    [5, 9, 1]
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the id after its latest occurrence stands
        self._n_indexed = 0  # ids for which the n-grams before them are in the index

    def propose(self, ids: Sequence[int], n: int) -> list[int]:
        """See `Proposer.propose`.

        As many ids as the two places have in common before, less one: two equal ids are often chance, twenty seldom.
        """
        self._index(ids)
        at = self._find(ids)
        if at is None:
            return []
        n = min(n, _n_common(ids, at, n + 1) - 1)
        # A repetition may reach into what it proposes: it is read round and round.
        source = ids[at : at + n]
        return [source[i % len(source)] for i in range(n)]

    def _index(self, ids: Sequence[int]) -> None:
        for at in range(self._n_indexed, len(ids)):
            for size in NGRAM_SIZES:
                if at >= size:
                    self._after[tuple(ids[at - size : at])] = at
        self._n_indexed = len(ids)

    def _find(self, ids: Sequence[int]) -> int | None:
        found = (self._after.get(tuple(ids[-size:])) for size in NGRAM_SIZES if len(ids) > size)
        return next((at for at in found if at is not None), None)


def _n_common(ids: Sequence[int], at: int, most: int) -> int:
    """How many ids before `at` equal those at the end."""
    n = min(NGRAM_SIZES)
    while n < min(most, at) and ids[at - n - 1] == ids[-n - 1]:
        n += 1
    return n


class Draft:
    """A smaller model of the same vocabulary that runs ahead (Leviathan et al., Speculative Decoding, 2023).

    It has a cache of its own, which keeps the keys and values of proposals that were accepted.
    """

    def __init__(self, model: Model, capacity: int, guess: Guess) -> None:
        """`capacity`: tokens to hold; beyond it, or the draft's n_positions, it goes on from the latest half."""
        self._capacity = min(capacity, model.config.n_positions)
        self._cache = model.new_cache(self._capacity)
        self._guess = guess
        self._held: list[int] = []  # whose keys and values the cache holds, but for those before `_begin`
        self._begin = 0
        self._n_given = 0  # of the held ones: given, not guessed

    def propose(self, ids: Sequence[int], n: int) -> list[int]:
        """See `Proposer.propose`."""
        n = min(n, self._capacity // 2)
        if n < 1:
            return []
        logits = self._catch_up(ids, n)
        written = list(ids)
        written.append(self._guess(logits, written))
        while len(written) < len(ids) + n:
            logits = self._cache.step(written[-1:])[0]
            written.append(self._guess(logits, written))
        self._held = written[:-1]
        self._n_given = len(ids)
        return written[len(ids) :]

    def _catch_up(self, ids: Sequence[int], n: int) -> Logits:
        """The logits after the last id, with room for n - 1 more."""
        n_kept = self._n_given
        while n_kept < min(len(self._held), len(ids) - 1) and self._held[n_kept] == ids[n_kept]:
            n_kept += 1
        if len(ids) + n - 1 - self._begin > self._capacity:
            self._begin = len(ids) - self._capacity // 2
            n_kept = self._begin
        self._cache.truncate(0, n_kept - self._begin)
        for chunk in cut(ids[n_kept:], n_kept - self._begin):
            logits: Logits = self._cache.extend(chunk)[-1]
        return logits


def open_draft(draft: ModelOrPath, model: Model, lookup: int) -> Model | None:
    """The draft as a Model; None stays None.

    Raises ValueError beside the option `lookup`, and where its ids mean other tokens than the model's.
    """
    if draft is None:
        return None
    if lookup:
        raise ValueError(f"lookup {lookup} and a draft both propose tokens; leave one of them out")
    opened = resolve(draft)
    n_own = opened.config.vocab_size
    n_expected = model.config.vocab_size
    is_other = opened is not model and calls.vocabulary(opened.tokenizer) != calls.vocabulary(model.tokenizer)
    if n_own != n_expected or is_other:
        raise ValueError(
            f"the draft {opened.folder} has another vocabulary ({n_own} tokens) than {model.folder} ({n_expected}); "
            "a draft proposes token ids, so both must have the same tokenizer"
        )
    return opened
