"""Find ids that complete a structured output from where a row stands: a beam search over what llguidance allows next.

Such ids are called a way. States of llguidance cannot be compared, so a state is known by the mask of the tokens that
may come next: states with the same mask are taken to be alike until a way is tried, and every way is tried.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.generation.constrained.grammar import Vocabulary, Way, Ways

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_WAYS = 10_000  # remembered for each row
FEW = 256  # of so many next tokens a search tries all; of more, some of one byte and the longest
N_LONGEST = 8
BEAMS = ((1, 8_000), (3, 6_000), (16, 4_000))  # states that searches go on from, and tokens they try
N_AGAIN = 8  # so often the same tokens may come next on a way before another way is preferred
DETOUR = 2  # a way may be so many times as long as there is room for, before it is shortened


@dataclass
class Effort:
    """What is left to spend: tokens tried, 30 to 300 microseconds each, and tokens repeated to run through loops."""

    tries: int
    repeats: int
    check: Callable[[], object] = lambda: None  # before each; it raises to end the search

    def spend_try(self) -> bool:
        """Whether there was one token more to try."""
        self.check()
        self.tries -= 1
        return self.tries >= 0

    def spend_repeat(self) -> bool:
        """Whether there was one token more to repeat."""
        self.check()
        self.repeats -= 1
        return self.repeats >= 0

    @contextlib.contextmanager
    def share(self, tries: int) -> Iterator[Effort]:
        """At most so many of the tries; what is left of them comes back."""
        part = Effort(min(tries, self.tries), self.repeats, self.check)
        self.tries -= part.tries
        yield part
        self.tries += max(0, part.tries)
        self.repeats = max(0, part.repeats)


class _State(NamedTuple):
    """Where a search has come to."""

    matcher: LLMatcher
    mask: bytes
    way: Way  # ids from the start
    keys: tuple[int, ...]  # hashes of the masks along it, the start's first


def _step(state: _State, id_: int) -> _State | None:
    """The state after one more token; None where that is refused."""
    matcher = state.matcher.deep_copy()
    if not matcher.try_consume_tokens([id_]):
        return None
    mask = matcher.compute_bitmask()
    return _State(matcher, mask, (*state.way, id_), (*state.keys, hash(mask)))


def _rank(state: _State) -> tuple[int, int]:
    """Fewest next tokens first: they are near an end; those of a loop that goes on and on, last."""
    return state.keys.count(state.keys[-1]) // N_AGAIN, int.from_bytes(state.mask).bit_count()


class WaySearch:
    """The ways of one row: found, and remembered for other states in which the same tokens may come next."""

    def __init__(self, words: Vocabulary, usable: NDArray[np.bool_], known: Ways) -> None:
        """`usable`: [n_vocab], the ids that may be generated at all, ends left out."""
        self._words = words
        self._usable = usable
        self.known: Ways = dict(known)

    def allowed(self, mask: bytes) -> NDArray[np.bool_]:
        """[n_vocab]: what may come next, ends and suppressed ids left out."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=len(self._usable), bitorder="little")
        return np.asarray(bits.view(np.bool_) & self._usable)

    def find(self, matcher: LLMatcher, mask: bytes, n_left: int, effort: Effort) -> Way | None:
        """A way from here to the end, () where the output may end; None where none is found."""
        if matcher.is_accepting():
            return ()
        if known := self._follow(matcher, hash(mask)):
            return known
        start = _State(matcher, mask, (), (hash(mask),))
        for (width, most), thorough in itertools.product(BEAMS, (False, True)):
            with effort.share(most) as share:
                found = self._search(start, DETOUR * n_left, share, width=width, thorough=thorough)
            if found is None:
                continue
            way, keys = _shorten(matcher, *found, effort.check)
            # A longer one is not remembered: the next searches would end with it.
            if len(way) <= n_left:
                self._remember(way, keys)
                return way
        return None

    def _follow(self, matcher: LLMatcher, key: int) -> Way | None:
        """The way known for another state with the same mask, if it completes the output here, too."""
        walker = matcher.deep_copy()
        known = self.known.get(key, ())
        for n, id_ in enumerate(known, 1):
            if not self._usable[id_] or not walker.try_consume_tokens([id_]):
                return None
            if walker.is_accepting():
                return known[:n]
        return None

    def _search(
        self, start: _State, n_most: int, effort: Effort, *, width: int, thorough: bool
    ) -> tuple[Way, tuple[int, ...]] | None:
        """A way and the keys along it; of the states after as many tokens with equal masks, one stands for all."""
        levels: dict[int, dict[int, _State]] = {0: {start.keys[0]: start}}
        endless = set[int]()
        for n in range(n_most):
            for state in sorted(levels.pop(n, {}).values(), key=_rank)[:width]:
                for after in self._next(state, endless, effort, n_most, thorough=thorough):
                    rest = () if after.matcher.is_accepting() else self._follow(after.matcher, after.keys[-1])
                    if rest is not None:
                        return after.way + rest, after.keys
                    levels.setdefault(len(after.way), {}).setdefault(after.keys[-1], after)
        return None

    def _next(
        self, state: _State, endless: set[int], effort: Effort, n_most: int, *, thorough: bool
    ) -> Iterator[_State]:
        """The states after one more token, except that loops, such as a string's, are run through at once.

        A token that leaves the mask as it was is inside a loop. One of a kind is repeated, and if the mask never
        changes, all are taken in turn, for what comes after `(?s).*a.{20}` depends on which they are.
        """
        loop: list[int] = []
        for id_ in self._tries(state.mask, thorough):
            if not effort.spend_try():
                return
            after = _step(state, id_)
            if after is None:
                continue
            if after.mask != state.mask:
                yield after
                continue
            loop.append(id_)
            if state.keys[-1] not in endless:
                if through := self._run_through(after, [id_], effort, n_most):
                    yield through
                else:
                    endless.add(state.keys[-1])
        if len(loop) > 1 and state.keys[-1] in endless and (through := self._run_through(state, loop, effort, n_most)):
            yield through

    def _run_through(self, state: _State, ids: list[int], effort: Effort, n_most: int) -> _State | None:
        """The state after ids have been repeated until the mask changes; None where that takes too long."""
        mask = state.mask
        for id_ in itertools.cycle(ids):
            if len(state.way) >= n_most or not effort.spend_repeat():
                return None
            after = _step(state, id_)
            if after is None:
                return state
            if after.mask != mask:
                return after
            state = after
        return None

    def _remember(self, way: Way, keys: tuple[int, ...]) -> None:
        """Keep a way for every state along it, the longest for a counted loop: it serves all of its states."""
        if len(self.known) > MAX_WAYS:
            self.known.clear()
        self.known.update((key, way[n:]) for n, key in reversed([*enumerate(keys)]))

    def _tries(self, mask: bytes, thorough: bool) -> list[int]:
        """The ids that a search tries next, those with most bytes first: all of a few, or a selection."""
        ids = np.flatnonzero(self.allowed(mask))
        lengths = self._words.lengths[ids]
        if len(ids) > FEW:
            preferred = (self._words.is_ascii if thorough else self._words.is_typical)[ids]
            selected = preferred if preferred.any() else lengths == 1
            selected[np.argsort(-lengths)[:N_LONGEST]] = True
            ids, lengths = ids[selected], lengths[selected]
        tries: list[int] = ids[np.argsort(-lengths, kind="stable")].tolist()
        return tries


def _shorten(
    matcher: LLMatcher, way: Way, keys: tuple[int, ...], check: Callable[[], object]
) -> tuple[Way, tuple[int, ...]]:
    """The way without the part between two states with the same mask, where the rest still completes the output."""
    walker = matcher.deep_copy()
    n = 0
    while n < len(way):
        for again in _meetings(keys, n):
            check()
            if _completes(walker, way[again:]):
                way = way[:n] + way[again:]
                keys = keys[:n] + keys[again:]
                break
        else:
            walker.try_consume_tokens([way[n]])
            n += 1
    return way, keys


def _meetings(keys: tuple[int, ...], n: int) -> list[int]:
    """Where the same tokens may come next as at n: the last place and the next."""
    places = [place for place in range(n + 1, len(keys)) if keys[place] == keys[n]]
    return [] if not places else [places[-1], places[0]]


def _completes(matcher: LLMatcher, way: Way) -> bool:
    walker = matcher.deep_copy()
    return walker.try_consume_tokens([*way]) == len(way) and walker.is_accepting()
