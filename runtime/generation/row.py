"""One continuation under way: from logits to ids to text, until something ends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime._lock import importing
from runtime._math import likeliest, log_softmax
from runtime.generation.completion import Completion, FinishReason
from runtime.generation.context_window import fit_prompt, history
from runtime.generation.penalties import make_penalties
from runtime.generation.sampling import draw_seed, make_sampler
from runtime.generation.stopping import Interrupted, Interruption
from runtime.generation.token_healing import heal
from runtime.model.model import Model
from runtime.options import Options
from runtime.tokenization.stop_strings import TextWriter

if TYPE_CHECKING:
    from runtime.generation.constrained.constraint import Constraint
    from runtime.prefixes.prefix import Prefix

Logits = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Place:
    """Which continuation a row is."""

    prompt_index: int = 0
    sample_index: int = 0


def _constrain(model: Model, options: Options, n_max: int, interruption: Interruption) -> Constraint | None:
    """None without a form, and where the search for a way was interrupted: the row then ends before its first id."""
    if options.form is None:
        return None
    with importing:
        from runtime.generation.constrained.constraint import (
            Constraint,
        )  # only where it is used: importing the package stays quick

    try:
        return Constraint(model, options, options.form, n_max, interruption.check)
    except Interrupted:
        return None


class Row:
    """The state of one continuation. `accept` takes the logits after its last id; `finish_reason` ends it."""

    def __init__(
        self,
        model: Model,
        prompt_ids: Sequence[int],
        options: Options,
        place: Place,
        n_top: int | None = None,
        prefix: Prefix | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        """`n_top`: record log-probabilities, with so many alternatives; None records none.

        `prefix`: what it has in common with the prompt is not computed again.
        `interruption`: what may end it; None is what the options say, from now on.
        Raises ValueError where the prompt does not fit, for ids outside the vocabulary, and for a form that no text
        of so many tokens has.
        """
        config = model.config
        self.place, self._options, self._n_top, self.prefix = place, options, n_top, prefix
        self._eos_ids, self._stop_ids = config.eos_token_ids, frozenset(options.stop_ids)
        latest = prompt_ids[-config.n_positions :]
        self.healing = heal(model.tokenizer, latest) if options.token_healing else None
        given = prompt_ids[:-1] if self.healing else prompt_ids
        self.window = fit_prompt(given, options, config.n_positions)  # what the cache holds or is to be filled with
        self.ids = list(self.window)
        if options.overflow == "slide":
            self.ids = history(given, options.pinned_tokens, config.n_positions)
        self._n_prompt, self._n_dropped = len(self.ids), len(given) - len(self.window)
        self._n_given = len(prompt_ids)
        self._seed = options.seed if options.seed is not None or options.temperature == 0 else draw_seed()
        self._sample = make_sampler(options, self._seed or 0, place.sample_index)
        self._penalize = make_penalties(options, list(self._eos_ids), config.vocab_size, config.n_positions)
        n_healed = len(self.healing.text) if self.healing else 0
        self._writer = TextWriter(model.tokenizer, self.ids, options.stops, n_healed)
        room = config.n_positions - len(self.window)
        self._n_max = min(options.max_new_tokens, room) if options.overflow == "stop" else options.max_new_tokens
        self.interruption = Interruption(options) if interruption is None else interruption
        self._constraint = _constrain(model, options, self._n_max, self.interruption)
        self.capacity = min(len(self.window) + options.max_new_tokens, config.n_positions)
        self.lookup = options.lookup
        self._pieces: list[str] = []
        self._logprobs: list[float] = []
        self._top: list[dict[int, float]] = []
        self.finish_reason: FinishReason | None = None
        self.n_pinned = min(options.pinned_tokens, self._n_prompt)
        self.n_slides, self.prefill_seconds, self.decode_seconds = 0, 0.0, 0.0
        self.prompt_logits: Logits | None = None  # [n_vocab] after the window, for rows with the same one

    def holds_prompt_of(self, other: Row) -> bool:
        """Whether this row's part of a cache begins with all that the other is to be filled with."""
        return self.prompt_logits is not None and self.n_slides == 0 and self.window == other.window

    @property
    def n_left(self) -> int:
        """How many ids it may still generate."""
        return self._n_max - (len(self.ids) - self._n_prompt)

    def guess(self, logits: Logits, ids: Sequence[int]) -> int:
        """What `accept` would choose from these logits [n_vocab] after its own ids and more, whatever their form."""
        allowed = self._penalize(logits, ids, self._n_prompt) if self._penalize else logits
        return self._sample(allowed, len(ids) - self._n_prompt)

    def accept(self, logits: Logits) -> str:
        """Choose the next id from the logits [n_vocab]; returns the text that is certain now."""
        try:
            return self._accept(logits)
        except Interrupted:
            return self.end(self.interruption.reason or "cancelled")

    def _accept(self, logits: Logits) -> str:
        step = len(self.ids) - self._n_prompt
        allowed = self._penalize(logits, self.ids, self._n_prompt) if self._penalize else logits
        if self.healing and step == 0:
            allowed = self.healing.restrict(allowed)
        if self._constraint:
            allowed = self._constraint.restrict(allowed)
        if not allowed.max() > -np.inf:  # NaN is not either
            if np.isnan(logits).any():
                raise ValueError("the model's logits are not numbers: its weights are damaged, or too large for fp32")
            return self.end("no_token")
        id_ = self._constraint.choose(allowed, step, self._sample) if self._constraint else self._sample(allowed, step)
        if id_ is None or id_ in self._eos_ids or id_ in self._stop_ids:
            return self.end("stop" if id_ in self._stop_ids - self._eos_ids else "eos")
        self._record(logits, id_)
        self.ids.append(id_)
        piece = self._keep(self._writer.push(id_))
        if self._writer.stopped:
            self.finish_reason = "stop"
        elif self._constraint and self._constraint.is_complete:
            piece += self.end("eos")  # which would be certain
        elif step + 1 == self._n_max:
            piece += self.end("length" if self._n_max == self._options.max_new_tokens else "context")
        return piece

    def check_choice(self) -> None:
        """Raise ValueError if the row ended since nothing was left to choose from."""
        if self.finish_reason == "no_token":
            n = len(self.ids) - self._n_prompt
            what = "suppress_ids, logit_bias or no_repeat_ngram_size"
            raise ValueError(
                f"{what} leave no token to generate after {n} new tokens of prompt {self.place.prompt_index}"
            )

    def end(self, reason: FinishReason) -> str:
        """End here; returns the text that was held back."""
        self.finish_reason = reason
        piece = self._keep(self._writer.flush())
        if self._writer.stopped:
            self.finish_reason = "stop"
        return piece

    def completion(self) -> Completion:
        """What came of it. Raises ValueError while the row is under way."""
        if self.finish_reason is None:
            raise ValueError("this continuation is not finished")
        return Completion(
            prompt_index=self.place.prompt_index,
            sample_index=self.place.sample_index,
            text="".join(self._pieces),
            ids=self.ids[self._n_prompt :],
            finish_reason=self.finish_reason,
            logprobs=self._logprobs,
            top_logprobs=self._top,
            seed=self._seed,
            n_prompt_tokens=self._n_given,
            n_truncated=self._n_dropped,
            n_slides=self.n_slides,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
        )

    def _keep(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece

    def _record(self, logits: Logits, id_: int) -> None:
        if self._n_top is None:
            return
        logprobs = log_softmax(logits[None].copy())[0]
        self._logprobs.append(float(logprobs[id_]))
        if self._n_top:
            self._top.append(likeliest(logprobs, self._n_top))
