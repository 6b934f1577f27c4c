"""One continuation under way: from logits to ids to text, until something ends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.errors import NoTokenError
from runtime.generation.chooser import Logits, TokenChooser
from runtime.generation.completion import Completion, FinishReason, Place
from runtime.generation.context_window import fit
from runtime.generation.logits.logits_processor import ProcessorFailed
from runtime.generation.logits.sampling import draw_seed, make_sampler
from runtime.generation.record import Record
from runtime.generation.stopping import Interrupted, Interruption
from runtime.generation.streaming import TextStream
from runtime.model.model import Model
from runtime.options import Options
from runtime.tokenization.token_texts import token_texts

if TYPE_CHECKING:
    from runtime.prefixes.prefix import Prefix

__all__ = ["Logits", "Place", "Row"]


class Row:
    """One continuation, independent of the cache and batch it is in. `accept` takes the logits after its last id.

    prompt: the prompt as it fits into the context.
    record: ids, log-probabilities, times.
    stream: the text.
    finish_reason: None while the continuation is under way.
    error: with finish_reason "error", what the logits processor raised.
    """

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
        Raises ValueError where the prompt does not fit, for ids outside the vocabulary, and for a structured output
        that no text of so many tokens has.
        """
        self.place = place
        self.prefix = prefix
        self.lookup = options.lookup
        self.interruption = Interruption(options) if interruption is None else interruption
        self.prompt = fit(model, prompt_ids, options)
        seed = options.seed if options.seed is not None or options.temperature == 0 else draw_seed()
        sampler = make_sampler(options, seed or 0, place.sample_index)
        self._chooser = TokenChooser(model, options, self.prompt, sampler, self.interruption)
        self.record = Record(place, self.prompt, seed, n_top)
        self._model = model
        # Stop strings need texts: without a tokenizer they are an error.
        tokenizer = model.tokenizer if model.has_tokenizer or options.stops else None
        self.stream = TextStream(tokenizer, self.prompt.ids, options.stops, self.prompt.n_healed)
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        # Logits [n_vocab] after the prompt's window, kept by the batch for rows with the same window.
        self.prompt_logits: Logits | None = None

    @property
    def ids(self) -> list[int]:
        """Those of the prompt that count, and those generated."""
        return self.record.ids

    @property
    def n_left(self) -> int:
        """How many ids it may still generate."""
        return self.prompt.n_max - self.record.n_new

    def holds_prompt_of(self, other: Row) -> bool:
        """Whether this row's part of a cache begins with all that the other is to be filled with."""
        is_whole = self.prompt_logits is not None and self.record.n_slides == 0
        return is_whole and self.prompt.window == other.prompt.window

    def guess(self, logits: Logits, ids: Sequence[int]) -> int:
        """The likely choice from logits [n_vocab] after `ids`: the row's own, and more that may still be rejected."""
        return self._chooser.guess(logits, ids)

    def accept(self, logits: Logits) -> str:
        """Choose the next id from the logits [n_vocab]; returns the text that is certain now."""
        # A row whose search for a structured output was interrupted has none that could restrict the choice.
        if self.interruption.reason:
            return self.end(self.interruption.reason)
        try:
            choice = self._chooser.choose(logits, self.ids)
        except Interrupted:
            choice = self.interruption.reason or "cancelled"
        except ProcessorFailed as failure:
            self.error = failure.error
            choice = "error"
        return self.end(choice) if isinstance(choice, str) else self._add(choice, logits)

    def end(self, reason: FinishReason) -> str:
        """End here; returns the text that was held back."""
        self.finish_reason = reason
        piece = self.stream.flush()
        if self.stream.stopped:
            self.finish_reason = "stop"
        return piece

    def check_choice(self) -> None:
        """Raise NoTokenError if nothing was left to choose from, and the error of a logits processor that failed."""
        if self.finish_reason == "error" and self.error is not None:
            raise self.error
        if self.finish_reason == "no_token":
            n_new = self.record.n_new
            what = "suppress_ids, logit_bias, no_repeat_ngram_size, banned or logits_processor"
            told = f"{what} leave no token to generate after {n_new} new tokens of prompt {self.place.prompt_index}"
            raise NoTokenError(told, n_new, self.place.prompt_index)

    def completion(self) -> Completion:
        """What came of it. Raises ValueError while the row is under way."""
        if self.finish_reason is None:
            raise ValueError("this continuation is not finished")
        completion = self.record.completion(self.stream.text, self.finish_reason, self.error)
        return dataclasses.replace(completion, tokens=token_texts(self._model, completion.ids))

    def _add(self, id_: int, logits: Logits) -> str:
        self.record.add(id_, logits)
        piece = self.stream.push(id_)
        if self.stream.stopped:
            self.finish_reason = "stop"
        elif self._chooser.is_complete:
            piece += self.end("eos")
        elif self.n_left == 0:
            piece += self.end(self.prompt.limit_reason)
        return piece
