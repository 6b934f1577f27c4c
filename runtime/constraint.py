"""Keep a continuation in its form: what may come next, and always a way to complete it within max_new_tokens.

llguidance says which tokens may come next. It knows nothing of max_new_tokens, at which GPT-2 is seldom at the end
of, say, a JSON string. So a row also holds a way: ids that complete the form from where it stands. A token after
which no way is known that fits what is left of max_new_tokens is not generated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.form import Form
from runtime.grammar import Way, Ways, vocabulary
from runtime.model import Model
from runtime.options import Options
from runtime.sampling import Sampler

if TYPE_CHECKING:
    from llguidance import LLMatcher

Logits = NDArray[np.float32]
N_DRAWS = 32  # tokens tried in one step before the known way is taken
MAX_TRIES = 20_000  # tokens tried in a search for the first way, 30 to 300 microseconds each
STEP_TRIES = 40  # in all searches of a step, for which the other rows of a batch wait; a few are usual
STEP_REPEATS = 200  # likewise, of tokens repeated to run through loops
MAX_WAYS = 10_000  # remembered for each row
MAX_ALIKE = 16  # kinds of row whose first ways are remembered for each form
N_STATES = 64  # from which a search goes on, those with the fewest next tokens
FEW = 256  # of so many next tokens a search tries all; of more, some of one byte and the longest
N_LONGEST = 8


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


def _count_next(state: _State) -> int:
    return int.from_bytes(state.mask).bit_count()


class Constraint:
    """The form of one row, and how much of it is there."""

    def __init__(self, model: Model, options: Options, form: Form, n_max: int) -> None:
        """`n_max`: ids that may be generated, the end of text not counted.

        Raises ImportError without the extra; ValueError for a form that the engine does not take, that no text has,
        or for which no text within n_max ids was found.
        """
        words, n_vocab = vocabulary(model), model.config.vocab_size
        beginning, first_ways = words.compile(form)
        self._matcher, self._n_left = beginning.deep_copy(), n_max
        self._words, self._n_tries = words, 2 * MAX_TRIES  # that are left, as the next
        self._n_repeats = 50 * MAX_TRIES
        self._ends = [id_ for id_ in model.config.eos_token_ids | set(options.stop_ids) if 0 <= id_ < n_vocab]
        never = [id_ for id_, bias in (options.logit_bias or {}).items() if bias == -np.inf]
        self._usable = np.ones(n_vocab, np.bool_)
        self._usable[[*self._ends, *never, *options.suppress_ids]] = False
        self._mask: bytes = self._matcher.compute_bitmask()
        # found anew, they would be the same; what other rows found later would make this one depend on them
        kind = (n_max, self._usable.tobytes())
        self._ways: Ways = dict(first_ways.get(kind, {}))
        self._way = self._find_first_way(form)
        if len(first_ways) >= MAX_ALIKE:
            first_ways.clear()
        first_ways[kind] = dict(self._ways)

    def _find_first_way(self, form: Form) -> Way:
        way = self._find_way(self._matcher, self._mask)
        if way is None and self._matcher.is_stopped():
            raise ValueError(f"{form.option} contradicts itself: no text has this form")
        if way is None or len(way) > self._n_left:
            raise ValueError(
                f"no text of {form.option} that ends within {self._n_left} tokens was found; raise max_new_tokens, let "
                "the form end earlier, or allow more in suppress_ids, stop_ids and logit_bias"
            )
        return way

    @property
    def is_complete(self) -> bool:
        """Whether the form is complete and nothing may follow."""
        return self._matcher.is_accepting() and self._matcher.is_stopped()

    def restrict(self, logits: Logits) -> Logits:
        """Logits [n_vocab], all that the form does not allow next at -inf; an end only where the form may end."""
        allowed = self._allowed(self._mask)
        if len(self._way) == self._n_left and np.count_nonzero(allowed) > FEW:
            allowed[:] = False  # the known way, rather than a trial of so many of which hardly one is as short
            allowed[self._way[0]] = True
        if self._matcher.is_accepting():
            allowed[self._ends] = True
        return np.where(allowed, logits, np.float32(-np.inf))

    def choose(self, logits: Logits, step: int, sample: Sampler) -> int | None:
        """Sample an id after which there is a way to the end, and take it; None to end here, with no id.

        logits: [n_vocab], from `restrict`; changed.
        """
        self._n_tries, self._n_repeats = STEP_TRIES, STEP_REPEATS
        for attempt in range(N_DRAWS):
            id_ = sample(logits, step + (attempt << 32))  # a draw of its own: the others keep their proportions
            if id_ in self._ends or self._take(id_):
                return id_
            logits[id_] = -np.inf
            if logits.max() == -np.inf:
                break
        if not self._way:
            return None
        id_ = self._way[0]
        self._take(id_)
        return id_

    def _take(self, id_: int) -> bool:
        """Take an id, unless no way to the end is left after it."""
        after = self._matcher.deep_copy()
        if not after.consume_token(id_):
            raise ValueError(f"the form cannot be followed further: {after.get_error()}")
        mask = after.compute_bitmask()
        way = self._way[1:] if self._way[:1] == (id_,) else self._find_way(after, mask)
        if way is None or len(way) >= self._n_left:
            return False
        self._matcher, self._mask, self._way, self._n_left = after, mask, way, self._n_left - 1
        return True

    def _find_way(self, matcher: LLMatcher, mask: bytes) -> Way | None:
        """A way from here to the end, () where the form may end; None where none is found."""
        if matcher.is_accepting():
            return ()
        known = self._follow(matcher, hash(mask))
        return known or self._search(matcher, mask, thorough=False) or self._search(matcher, mask, thorough=True)

    def _follow(self, matcher: LLMatcher, key: int) -> Way | None:
        """The way known for another state in which the same tokens may come next, if it completes the form here too."""
        walker, known = matcher.deep_copy(), self._ways.get(key, ())
        for n, id_ in enumerate(known, 1):
            if not self._usable[id_] or not walker.try_consume_tokens([id_]):
                return None
            if walker.is_accepting():
                return known[:n]
        return None

    def _search(self, matcher: LLMatcher, mask: bytes, *, thorough: bool) -> Way | None:
        """A short way, breadth first; of the states after as many tokens with equal masks, the first stands for all.

        A token that leaves the mask as it was is inside a loop, such as a string's, which is run through at once.
        """
        levels: dict[int, dict[int, _State]] = {0: {0: _State(matcher, mask, (), (hash(mask),))}}
        endless, least = set[int](), max(0, self._n_tries - MAX_TRIES)
        for n in range(self._n_left):
            for state in sorted(levels.pop(n, {}).values(), key=_count_next)[:N_STATES]:
                for id_ in self._tries(state.mask, thorough):
                    if self._n_tries <= least:
                        return None
                    self._n_tries -= 1
                    after = _step(state, id_)
                    if after is None or (after.mask == state.mask and after.keys[-1] in endless):
                        continue
                    rest = () if after.matcher.is_accepting() else self._follow(after.matcher, after.keys[-1])
                    if rest is not None:
                        return self._remember(state.keys, after.way + rest)
                    if after.mask == state.mask:
                        after = self._run_through(after, id_)
                    if after is None:
                        endless.add(state.keys[-1])
                    else:
                        levels.setdefault(len(after.way), {}).setdefault(after.keys[-1], after)
        return None

    def _run_through(self, state: _State, id_: int) -> _State | None:
        """The state after a token has been repeated until the mask changes; None where that takes too long."""
        mask = state.mask
        while len(state.way) < self._n_left and self._n_repeats > 0:
            self._n_repeats -= 1
            after = _step(state, id_)
            if after is None:
                return state
            if after.mask != mask:
                return after
            state = after
        return None

    def _remember(self, keys: tuple[int, ...], way: Way) -> Way:
        """Keep a way for every state along it, the longest for a counted loop: it serves all of its states."""
        if len(self._ways) > MAX_WAYS:
            self._ways.clear()
        self._ways.update((key, way[n:]) for n, key in reversed([*enumerate(keys)]))
        return way

    def _tries(self, mask: bytes, thorough: bool) -> list[int]:
        """The ids that a search tries next, those with most bytes first: all of a few, or a selection."""
        ids = np.flatnonzero(self._allowed(mask))
        lengths = self._words.lengths[ids]
        if len(ids) > FEW:
            preferred = (self._words.is_ascii if thorough else self._words.is_typical)[ids]
            selected = preferred if preferred.any() else lengths == 1
            selected[np.argsort(-lengths)[:N_LONGEST]] = True
            ids, lengths = ids[selected], lengths[selected]
        tries: list[int] = ids[np.argsort(-lengths, kind="stable")].tolist()
        return tries

    def _allowed(self, mask: bytes) -> NDArray[np.bool_]:
        """[n_vocab]: what may come next, ends and suppressed ids left out."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=len(self._usable), bitorder="little")
        return np.asarray(bits.view(np.bool_) & self._usable)
