"""What is known of one continuation while it is generated, and its Completion at the end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime._math import likeliest, log_softmax
from runtime.generation.completion import Completion, FinishReason, Place
from runtime.generation.context_window import FittedPrompt


class NewTokens(NamedTuple):
    """Generated ids, with as many log-probabilities and alternatives as are recorded."""

    ids: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]


class Record:
    """Ids, log-probabilities and times of one continuation."""

    def __init__(self, place: Place, prompt: FittedPrompt, seed: int | None, n_top: int | None) -> None:
        """`n_top`: alternatives to record beside the log-probability of each id; None records neither."""
        self.ids = list(prompt.ids)  # the prompt's, and those generated
        self.n_slides = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._place = place
        self._prompt = prompt
        self._seed = seed
        self._n_top = n_top
        self._logprobs: list[float] = []
        self._top_logprobs: list[dict[int, float]] = []

    @property
    def n_new(self) -> int:
        """How many ids have been generated."""
        return len(self.ids) - len(self._prompt.ids)

    def add(self, id_: int, logits: NDArray[np.float32]) -> None:
        """Append an id that was chosen from the model's logits [n_vocab]."""
        if self._n_top is not None:
            logprobs = log_softmax(logits)
            self._logprobs.append(float(logprobs[id_]))
            if self._n_top:
                self._top_logprobs.append(likeliest(logprobs, self._n_top))
        self.ids.append(id_)

    def since(self, n_known: int) -> NewTokens:
        """What has been generated after the first `n_known` new ids."""
        ids = self.ids[len(self._prompt.ids) + n_known :]
        return NewTokens(ids, self._logprobs[n_known:], self._top_logprobs[n_known:])

    def completion(self, text: str, finish_reason: FinishReason, error: Exception | None = None) -> Completion:
        """All of it, with the text of the continuation, and what ended it in failure."""
        new = self.since(0)
        return Completion(
            prompt_index=self._place.prompt_index,
            sample_index=self._place.sample_index,
            text=text,
            ids=new.ids,
            finish_reason=finish_reason,
            logprobs=new.logprobs,
            top_logprobs=new.top_logprobs,
            seed=self._seed,
            n_prompt_tokens=self._prompt.n_tokens,
            n_truncated=self._prompt.n_truncated,
            n_slides=self.n_slides,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            error=error,
        )
