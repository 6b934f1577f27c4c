"""Logits to the next id.

In this order: penalties, the logits processor, banned phrases, token healing, structured output, the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime._lock import importing
from runtime.generation.completion import FinishReason
from runtime.generation.context_window import FittedPrompt
from runtime.generation.logits.banned import make_banned
from runtime.generation.logits.logits_processor import process
from runtime.generation.logits.penalties import find_penalties
from runtime.generation.logits.sampling import Sampler
from runtime.generation.stopping import Interrupted, Interruption
from runtime.model.model import Model
from runtime.options import Options

if TYPE_CHECKING:
    from runtime.generation.constrained.constraint import Constraint

Logits = NDArray[np.float32]


class TokenChooser:
    """Chooses the ids of one continuation, one after the other."""

    def __init__(
        self, model: Model, options: Options, prompt: FittedPrompt, sampler: Sampler, interruption: Interruption
    ) -> None:
        """`interruption` ends the search for a structured output.

        Raises ValueError for ids outside the vocabulary, and for a structured output that no text of so many tokens
        has.
        """
        config = model.config
        self._n_prompt = len(prompt.ids)
        self._sampler = sampler
        self._healing = prompt.healing
        self._eos_ids = config.eos_token_ids
        self._stop_ids = frozenset(options.stop_ids)
        self._penalties = find_penalties(model, options)
        if self._penalties:
            self._history = self._penalties.new_history(self._n_prompt, self._n_prompt + prompt.n_max)
        self._processor = options.logits_processor
        hidden = self._healing.text if self._healing else ""
        self._banned = make_banned(model, options.banned_phrases, prompt.ids, hidden)
        self._constraint = _constrain(model, options, prompt.n_max, interruption)

    @property
    def is_complete(self) -> bool:
        """Whether a structured output is complete and nothing may follow."""
        return self._constraint is not None and self._constraint.is_complete

    def choose(self, logits: Logits, ids: Sequence[int]) -> int | FinishReason:
        """The id that follows `ids`, or why none does. logits: [n_vocab]; ids: the prompt's and those generated.

        Raises ValueError for logits that are not numbers, ProcessorFailed where the logits processor fails, Interrupted
        where the search for a structured output was interrupted.
        """
        step = len(ids) - self._n_prompt
        allowed = self._restrict(logits, ids)
        # NaN is not above -inf either.
        if not allowed.max() > -np.inf:
            check_numbers(logits)
            return "no_token"
        id_ = self._sample(allowed, step)
        if id_ is None or id_ in self._eos_ids:
            return "eos"
        return "stop" if id_ in self._stop_ids else id_

    def _sample(self, allowed: Logits, step: int) -> int | None:
        """None where a structured output ends without an id."""
        if self._constraint:
            return self._constraint.choose(allowed, step, self._sampler)
        return self._sampler(allowed, step)

    def guess(self, logits: Logits, ids: Sequence[int]) -> int:
        """What `choose` might choose after ids that may still be rejected.

        Structured output is left out of account, and so is the logits processor: it is called once for each id that is
        generated, and may count its calls.
        """
        step = len(ids) - self._n_prompt
        if self._penalties:
            ahead = self._history.fork()
            ahead.follow(ids)
            logits = self._penalties(logits, ahead, step)
        if self._banned:
            allowed = self._banned.restrict(logits, ids[self._n_prompt :])
            # Nothing left to choose ends the row; a guess has to be an id.
            logits = allowed if allowed.max() > -np.inf else logits
        return self._sampler(logits, step)

    def _restrict(self, logits: Logits, ids: Sequence[int]) -> Logits:
        """The logits to sample from."""
        step = len(ids) - self._n_prompt
        if self._penalties:
            self._history.follow(ids)
            logits = self._penalties(logits, self._history, step)
        if self._processor:
            # What is wrong with the model is not the processor's fault.
            check_numbers(logits)
            logits = process(self._processor, ids, logits)
        if self._banned:
            logits = self._banned.restrict(logits, ids[self._n_prompt :])
        if self._healing and step == 0:
            logits = self._healing.restrict(logits)
        return self._constraint.restrict(logits) if self._constraint else logits


def check_numbers(logits: Logits) -> None:
    """Raise ValueError for NaN among the model's logits."""
    if np.isnan(logits).any():
        raise ValueError("the model's logits are not numbers: its weights are damaged, or too large for fp32")


def _constrain(model: Model, options: Options, n_max: int, interruption: Interruption) -> Constraint | None:
    """The structured output that is asked for; None where there is none.

    None also where the search for its first completion was interrupted: the row then ends before its first id.
    """
    if options.form is None:
        return None
    with importing:
        # Imported only where it is used: importing the package stays quick.
        from runtime.generation.constrained.constraint import Constraint

    try:
        return Constraint(model, options, options.form, n_max, interruption.check)
    except Interrupted:
        return None
