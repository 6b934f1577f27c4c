"""Keep a continuation in its form: what may come next, and always a way to complete it within max_new_tokens.

llguidance says which tokens may come next. It knows nothing of max_new_tokens, at which GPT-2 is seldom at the end
of, say, a JSON string. So a row also holds a way: ids that complete the form from where it stands. A token after
which no way is known that fits what is left of max_new_tokens is not generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OptionError
from runtime.generation.constrained.completion_search import FEW, Effort, WaySearch
from runtime.generation.constrained.grammar import Way, vocabulary
from runtime.generation.sampling import Sampler
from runtime.model.model import Model
from runtime.options import Form, Options

Logits = NDArray[np.float32]
N_DRAWS = 32  # tokens tried in one step before the known way is taken
FIRST = Effort(36_000, 1_000_000)  # for the first way
STEP = Effort(40, 200)  # for all ways of a step, for which the other rows of a batch wait; a few tries are usual
MAX_ALIKE = 16  # kinds of row whose first ways are remembered for each form


class Constraint:
    """The form of one row, and how much of it is there."""

    def __init__(
        self, model: Model, options: Options, form: Form, n_max: int, check: Callable[[], object] = lambda: None
    ) -> None:
        """`n_max`: ids that may be generated, the end of text not counted. `check` is called all through a search.

        Raises ImportError without the extra; ValueError for a form that the engine does not take, that no text has,
        or for which no text within n_max ids was found; what `check` raises.
        """
        words, n_vocab = vocabulary(model), model.config.vocab_size
        beginning, first_ways = words.compile(form)
        self._matcher, self._n_left, self._check = beginning.deep_copy(), n_max, check
        self._ends = [id_ for id_ in model.config.eos_token_ids | set(options.stop_ids) if 0 <= id_ < n_vocab]
        never = [id_ for id_, bias in (options.logit_bias or {}).items() if bias == -np.inf]
        usable = np.ones(n_vocab, np.bool_)
        usable[[*self._ends, *never, *options.suppress_ids]] = False
        self._mask: bytes = self._matcher.compute_bitmask()
        # found anew, they would be the same; what other rows found later would make this one depend on them
        kind = (n_max, usable.tobytes())
        self._ways = WaySearch(words, usable, first_ways.get(kind, {}))
        self._way = self._find_first_way(form)
        if len(first_ways) >= MAX_ALIKE:
            first_ways.clear()
        first_ways[kind] = dict(self._ways.known)

    def _find_first_way(self, form: Form) -> Way:
        way = self._ways.find(self._matcher, self._mask, self._n_left, replace(FIRST, check=self._check))
        if way is None and self._matcher.is_stopped():
            raise OptionError(f"{form.option} contradicts itself: no text has this form", form.option)
        if way is None:
            raise OptionError(
                f"no text of {form.option} that ends within {self._n_left} tokens was found; raise max_new_tokens, let "
                "the form end earlier, or allow more in suppress_ids, stop_ids and logit_bias",
                form.option,
            )
        return way

    @property
    def is_complete(self) -> bool:
        """Whether the form is complete and nothing may follow."""
        return self._matcher.is_accepting() and self._matcher.is_stopped()

    def restrict(self, logits: Logits) -> Logits:
        """Logits [n_vocab], all that the form does not allow next at -inf; an end only where the form may end."""
        allowed = self._ways.allowed(self._mask)
        if len(self._way) == self._n_left and np.count_nonzero(allowed) > FEW:
            allowed[:] = False  # the known way, rather than a trial of so many of which hardly one is as short
            allowed[self._way[0]] = True
        if self._matcher.is_accepting():
            allowed[self._ends] = True
        return np.where(allowed, logits, np.float32(-np.inf))

    def choose(self, logits: Logits, step: int, sample: Sampler) -> int | None:
        """Sample an id after which there is a way to the end, and take it; None to end here, with no id.

        logits: [n_vocab], from `restrict`; changed. Raises what `check` does.
        """
        effort = replace(STEP, check=self._check)
        for attempt in range(N_DRAWS):
            self._check()
            id_ = sample(logits, step + (attempt << 32))  # a draw of its own: the others keep their proportions
            if id_ in self._ends or self._take(id_, effort):
                return id_
            logits[id_] = -np.inf
            if logits.max() == -np.inf:
                break
        if not self._way:
            return None
        id_ = self._way[0]
        self._take(id_, effort)
        return id_

    def _take(self, id_: int, effort: Effort) -> bool:
        """Take an id, unless no way to the end is left after it."""
        after = self._matcher.deep_copy()
        if not after.consume_token(id_):
            raise ValueError(f"the form cannot be followed further: {after.get_error()}")
        mask = after.compute_bitmask()
        way = self._way[1:] if self._way[:1] == (id_,) else self._ways.find(after, mask, self._n_left - 1, effort)
        if way is None or len(way) >= self._n_left:
            return False
        self._matcher, self._mask, self._way, self._n_left = after, mask, way, self._n_left - 1
        return True
