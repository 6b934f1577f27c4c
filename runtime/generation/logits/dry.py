"""DRY, "don't repeat yourself": the longer a repetition that an id would prolong, the less likely the id.

By p-e-w (text-generation-webui, 2024), as llama.cpp has it. An id that followed the last n ids where they occurred
before, n at least `allowed_length`, loses multiplier * base ** (n - allowed_length) from its logit. Sequence breakers
are texts, such as a line end, across which nothing counts as a repetition.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime._lock import Lock
from runtime.generation.logits.history import Ids, TokenHistory
from runtime.model.model import Model
from runtime.model.tokenizer.token_bytes import TokenBytes
from runtime.options import DRY_BREAKERS as BREAKERS
from runtime.tokenization.encode import encode_text

Logits = NDArray[np.float32]
_MAX_KNOWN = 16  # lists of breakers that are remembered for a model
_MAX_TAIL = 20  # ids of a breaker after its first
_LARGEST_LOG = 88.7228391  # of a float32; llama.cpp's constant


class SequenceBreakers:
    """The ids, or sequences of ids, in which the text of a breaker may occur."""

    def __init__(
        self, texts: Sequence[str], token_bytes: Sequence[bytes], encode: Callable[[str], Sequence[int]]
    ) -> None:
        """`token_bytes`: of every id, b"" for one without a text of its own. `encode`: ids of a text alone."""
        # By its first id: what follows in a sequence that breaks, () where the first id breaks alone.
        self._tails: dict[int, set[tuple[int, ...]]] = {}
        for text in texts:
            self._add(text.encode(), token_bytes, encode)
        self._begins = np.zeros(len(token_bytes), np.bool_)
        self._begins[[*self._tails]] = True
        self.alone: Ids = np.array(sorted(id_ for id_, tails in self._tails.items() if () in tails), np.int64)

    def _add(self, breaker: bytes, token_bytes: Sequence[bytes], encode: Callable[[str], Sequence[int]]) -> None:
        for id_, token in enumerate(token_bytes):
            if breaker in token:
                self._tails.setdefault(id_, set()).add(())
                continue
            for n in range(1, min(len(token), len(breaker) - 1) + 1):
                if token.endswith(breaker[:n]):
                    rest = encode(breaker[n:].decode(errors="replace"))
                    self._tails.setdefault(id_, set()).add(tuple(rest[:_MAX_TAIL]))

    def n_after_last(self, window: Ids) -> int:
        """How many ids stand after the last breaker in a window; all of them where there is none."""
        for at in reversed(np.flatnonzero(self._begins[window])):
            rest = tuple(window[at + 1 : at + 1 + _MAX_TAIL].tolist())
            lengths = [len(tail) for tail in self._tails[int(window[at])] if rest[: len(tail)] == tail]
            if lengths:
                return len(window) - int(at) - 1 - max(lengths)
        return len(window)


class Dry:
    """The penalty of some settings, for any number of continuations."""

    def __init__(self, multiplier: float, base: float, allowed_length: int, breakers: SequenceBreakers) -> None:
        """`multiplier`: 0 is off. `base`: at least 1. `allowed_length`: the longest repetition without a penalty."""
        self._multiplier = multiplier
        self._base = base
        self._allowed_length = allowed_length
        self._breakers = breakers
        largest = int(_LARGEST_LOG / math.log(base)) if base > 1.000001 else 0
        # Where the base itself is beyond float32, there is no limit: the penalty is infinite.
        self._max_exponent = largest or np.iinfo(np.int32).max

    def penalize(self, logits: Logits, history: TokenHistory) -> None:
        """Lower the logits [n_vocab] of what would prolong a repetition, in place.

        The history is one that finds repeats.
        """
        longest = self.repetitions(history)
        if not longest:
            return
        ids = np.fromiter(longest, np.int64, len(longest))
        lengths = np.fromiter(longest.values(), np.int64, len(longest))
        exponents = np.minimum(lengths - self._allowed_length, self._max_exponent)
        # Beyond float32 is infinite: never.
        with np.errstate(over="ignore"):
            logits[ids] -= (self._multiplier * np.power(self._base, exponents.astype(np.float64))).astype(np.float32)

    def repetitions(self, history: TokenHistory) -> dict[int, int]:
        """The ids that would prolong a repetition of at least `allowed_length` ids, and how long the longest is."""
        window = history.window
        limit = self._breakers.n_after_last(window)
        if not self._multiplier or len(window) <= self._allowed_length or limit < self._allowed_length:
            return {}
        lengths = np.minimum(history.repeat_lengths, limit)
        places = np.flatnonzero(lengths >= self._allowed_length)
        # The longest comes last, and stays.
        places = places[np.argsort(lengths[places], kind="stable")]
        longest = dict(zip(window[places + 1].tolist(), lengths[places].tolist(), strict=True))
        for id_ in self._breakers.alone.tolist():
            longest.pop(id_, None)
        return longest


_LOCK = Lock()
_OF_MODEL: weakref.WeakKeyDictionary[Model, dict[tuple[str, ...], SequenceBreakers]] = weakref.WeakKeyDictionary()


def make_dry(
    model: Model, multiplier: float, base: float, allowed_length: int, breakers: Sequence[str] = BREAKERS
) -> Dry | None:
    """The penalty for a model, or None where `multiplier` is 0. Breakers are looked for once in its vocabulary."""
    if not multiplier:
        return None
    with _LOCK:
        known = _OF_MODEL.setdefault(model, {})
        texts = tuple(breakers)
        if len(known) >= _MAX_KNOWN:
            known.clear()
        if texts not in known:
            known[texts] = _find_breakers(model, texts)
        return Dry(multiplier, base, allowed_length, known[texts])


def _find_breakers(model: Model, texts: Sequence[str]) -> SequenceBreakers:
    bytes_of = TokenBytes(model.tokenizer)
    token_bytes = [bytes_of(id_) or b"" for id_ in range(model.config.vocab_size)]
    return SequenceBreakers(texts, token_bytes, lambda text: encode_text(model.tokenizer, text))
