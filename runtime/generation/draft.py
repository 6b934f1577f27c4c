"""A draft model: a smaller one of the same vocabulary runs ahead (Leviathan et al., Speculative Decoding, 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.model.kv_cache import Logits
from runtime.model.model import Model
from runtime.model.prefill import cut
from runtime.model.resolve import ModelOrPath, resolve
from runtime.model.tokenizer import calls

Guess = Callable[[Logits, Sequence[int]], int]  # logits [n_vocab], the ids before -> the id that follows


def open_draft(draft: ModelOrPath, model: Model, lookup: int) -> Model | None:
    """The draft as a Model; None stays None.

    Raises ValueError beside the option `lookup`, and where its ids mean other tokens than the model's.
    """
    if draft is None:
        return None
    if lookup:
        raise ValueError(f"lookup {lookup} and a draft both propose tokens; leave one of them out")
    opened = resolve(draft)
    sizes = opened.config.vocab_size, model.config.vocab_size
    is_other = opened is not model and calls.vocabulary(opened.tokenizer) != calls.vocabulary(model.tokenizer)
    if sizes[0] != sizes[1] or is_other:
        raise ValueError(
            f"the draft {opened.folder} has another vocabulary ({sizes[0]} tokens) than {model.folder} ({sizes[1]}); "
            "a draft proposes token ids, so both must have the same tokenizer"
        )
    return opened


class Draft:
    """A `Proposer` that lets a model write ahead, on a cache of its own, which keeps what came true."""

    def __init__(self, model: Model, capacity: int, guess: Guess) -> None:
        """`capacity`: tokens to hold; beyond it, or the draft's n_positions, it goes on from the latest half."""
        self._capacity = min(capacity, model.config.n_positions)
        self._cache, self._guess = model.new_cache(self._capacity), guess
        self._held: list[int] = []  # whose keys and values the cache holds, but for those before `_begin`
        self._begin = 0
        self._n_sure = 0  # of the held ones: given, not guessed

    def propose(self, ids: Sequence[int], n: int) -> list[int]:
        """See `Proposer.propose`."""
        n = min(n, self._capacity // 2)
        if n < 1:
            return []
        logits, written = self._catch_up(ids, n), list(ids)
        written.append(self._guess(logits, written))
        while len(written) < len(ids) + n:
            logits = self._cache.step(written[-1:])[0]
            written.append(self._guess(logits, written))
        self._held, self._n_sure = written[:-1], len(ids)
        return written[len(ids) :]

    def _catch_up(self, ids: Sequence[int], n: int) -> Logits:
        """The logits after the last id, with room for n - 1 more."""
        n_kept = self._n_sure
        while n_kept < min(len(self._held), len(ids) - 1) and self._held[n_kept] == ids[n_kept]:
            n_kept += 1
        if len(ids) + n - 1 - self._begin > self._capacity:
            n_kept = self._begin = len(ids) - self._capacity // 2
        self._cache.truncate(0, n_kept - self._begin)
        for chunk in cut(ids[n_kept:], n_kept - self._begin):
            logits: Logits = self._cache.extend(chunk)[-1]
        return logits
