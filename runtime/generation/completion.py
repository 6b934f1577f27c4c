"""What a generation returns."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

# eos: the model ended the text, or a structured output is complete.
# stop: a stop string or one of stop_ids.
# length: max_new_tokens. context: n_positions, with overflow "stop".
# deadline, cancelled: from outside.
# no_token: suppress_ids, logit_bias, no_repeat_ngram_size, banned or the like left nothing to choose from.
# error: the logits processor failed.
FinishReason = Literal["eos", "stop", "length", "context", "deadline", "cancelled", "no_token", "error"]
_SHOWN = 60  # characters of the text in a REPL


@dataclasses.dataclass(frozen=True)
class Place:
    """Which continuation of a call this is."""

    prompt_index: int = 0
    sample_index: int = 0


@dataclasses.dataclass(frozen=True, repr=False)
class Completion:
    """One continuation of one prompt, and how it came about.

    Log-probabilities are natural logarithms under the model's own distribution, before temperature, penalties and
    filters.
    """

    prompt_index: int
    sample_index: int  # among the continuations of this prompt; of beams, the best is 0
    text: str  # without the prompt, and up to a stop string
    ids: list[int]  # every id generated; those of a stop string too, the end of text not
    finish_reason: FinishReason
    logprobs: list[float]  # one for each of ids
    top_logprobs: list[dict[int, float]]  # likeliest first, as many as asked for; empty when none were
    seed: int | None  # None where nothing was drawn
    n_prompt_tokens: int  # of the whole prompt, what was left out included
    n_truncated: int  # tokens of the prompt left out by overflow "truncate_left" or "slide"
    n_slides: int  # how often overflow "slide" moved the window
    prefill_seconds: float
    decode_seconds: float  # of the passes this row took part in
    # Of a beam: log-probability after penalties / length ** length_penalty. None without beams, and for a continuation
    # that stands in for one that does not exist (finish_reason "no_token", no ids).
    beam_score: float | None = None
    # With finish_reason "error": what the logits processor raised, or what is wrong with the array that it returned.
    error: Exception | None = None
    # The text of each of ids by itself, `�` for bytes that are part of a character. A model without a tokenizer has no
    # texts: `text` is "" then, and there are no tokens.
    tokens: list[str] = dataclasses.field(default_factory=list)

    @property
    def logprob(self) -> float:
        """Log-probability of the continuation: the sum over its ids."""
        return math.fsum(self.logprobs)

    @property
    def n_tokens(self) -> int:
        """How many ids were generated."""
        return len(self.ids)

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}..."
        facts = f"{self.n_tokens} tokens, ended by {self.finish_reason}, logprob {self.logprob:.2f}"
        return f"<Completion {text!r}: {facts}{'' if self.seed is None else f', seed {self.seed}'}>"
