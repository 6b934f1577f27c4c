"""Structured output: which tokens may come next, so that the output is always complete within max_new_tokens.

llguidance says which tokens the grammar allows next. It knows nothing of max_new_tokens, and a model seldom ends, say,
a JSON string in time. So a row also holds a way: ids that complete the output from where it stands. A token after
which no way is known that fits into what is left of max_new_tokens is not generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OptionError
from runtime.generation.constrained.completion_search import FEW, Effort, WaySearch
from runtime.generation.constrained.grammar import Way, vocabulary
from runtime.generation.logits.sampling import Sampler
from runtime.model.model import Model
from runtime.options import Form, Options

Logits = NDArray[np.float32]
N_DRAWS = 32  # tokens tried in one step before the known way is taken
FIRST = Effort(36_000, 1_000_000)  # for the first way
STEP = Effort(40, 200)  # for all ways of a step, for which the other rows of a batch wait; a few tries are usual
MAX_ALIKE = 16  # kinds of row whose first ways are remembered for each form


class Constraint:
    """The grammar of one row's output, and how far the row has come in it."""

    def __init__(
        self, model: Model, options: Options, form: Form, n_max: int, check: Callable[[], object] = lambda: None
    ) -> None:
        """`n_max`: ids that may be generated, the end of text not counted. `check` is called throughout a search.

        Raises ImportError without the extra; ValueError for a structured output that llguidance does not take, that
        no text has, or for which no text within n_max ids was found; what `check` raises.
        """
        words = vocabulary(model)
        n_vocab = model.config.vocab_size
        beginning, first_ways = words.compile(form)
        self._matcher = beginning.deep_copy()
        self._n_left = n_max
        self._check = check
        self._ends = [id_ for id_ in model.config.eos_token_ids | set(options.stop_ids) if 0 <= id_ < n_vocab]
        never = [id_ for id_, bias in (options.logit_bias or {}).items() if bias == -np.inf]
        usable = np.ones(n_vocab, np.bool_)
        usable[[*self._ends, *never, *options.suppress_ids]] = False
        self._mask: bytes = self._matcher.compute_bitmask()
        # Only what such a row finds at its beginning is shared: found again, it would be the same. What other rows find
        # later would make this one depend on them.
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
        """Whether the output is complete and nothing may follow."""
        return self._matcher.is_accepting() and self._matcher.is_stopped()

    def restrict(self, logits: Logits) -> Logits:
        """Logits [n_vocab] with every token at -inf that may not come next; an end may where the output may end."""
        allowed = self._ways.allowed(self._mask)
        if len(self._way) == self._n_left and np.count_nonzero(allowed) > FEW:
            # Only the known way: hardly one of so many other tokens leaves a way that is as short.
            allowed[:] = False
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
            # Each attempt is a draw of its own, so that the other tokens keep their proportions.
            id_ = sample(logits, step + (attempt << 32))
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
            raise ValueError(f"the structured output cannot be continued: {after.get_error()}")
        mask = after.compute_bitmask()
        way = self._way[1:] if self._way[:1] == (id_,) else self._ways.find(after, mask, self._n_left - 1, effort)
        if way is None or len(way) >= self._n_left:
            return False
        self._matcher = after
        self._mask = mask
        self._way = way
        self._n_left -= 1
        return True
