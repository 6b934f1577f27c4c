"""What a reply gains at a time, before it is written as OpenAI does."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel

from runtime.generation.completion import Completion
from runtime.model.model import Model
from runtime.server.engine.served_row import Part, ServedRow
from runtime.server.engine.token_names import Token, TokenReader

FinishReason = Literal["stop", "length"]


class Details(BaseModel):
    """What OpenAI's reply has no place for; see `runtime.Completion` and `runtime.tasks.Answer`."""

    finish_reason: str
    ids: list[int] = []
    seed: int | None = None
    n_truncated: int = 0
    n_slides: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    answer: str | None = None  # of a task
    confidence: float | None = None
    probabilities: Mapping[str, float] = {}


@dataclasses.dataclass
class End:
    """How a continuation ended."""

    details: Details
    n_tokens: int = 0
    logprob: float = 0.0

    @property
    def finish_reason(self) -> FinishReason:
        """OpenAI's word for it."""
        return "stop" if self.details.finish_reason in ("eos", "stop") else "length"

    @property
    def mean_logprob(self) -> float:
        """By which the best of several is chosen, as OpenAI does."""
        return self.logprob / max(1, self.n_tokens)


@dataclasses.dataclass
class Gain:
    """More of the reply's choice `index`."""

    index: int
    text: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    end: End | None = None

    def extend(self, later: Gain) -> None:
        """Take in what follows."""
        self.text += later.text
        self.tokens += later.tokens
        self.end = later.end


class Continuation:
    """A row as its client sees it: a token is shown with the first of its text, so none of a stop string is."""

    def __init__(self, model: Model, row: ServedRow, index: int, n_before: int, *, shows_tokens: bool) -> None:
        """`n_before`: characters of the prompt."""
        self.index = index
        self._reader = TokenReader(model, row.ids, n_before - row.prompt.n_healed) if shows_tokens else None
        self._n_characters, self._held = n_before, list[Token]()

    def read(self, part: Part) -> Gain:
        """What a part adds."""
        self._n_characters += len(part.text)
        if self._reader:
            tops: Sequence[Mapping[int, float]] = part.top or [{}] * len(part.ids)
            self._held += map(self._reader.read, part.ids, part.logprobs, tops)
        n = next((n for n, token in enumerate(self._held) if token.offset >= self._n_characters), len(self._held))
        shown, self._held = self._held[:n], self._held[n:]
        return Gain(self.index, part.text, shown, describe(part.completion) if part.completion else None)


def describe(completion: Completion) -> End:
    """The end of a row."""
    names = Details.model_fields.keys() - {"answer", "confidence", "probabilities"}
    details = Details(**{name: getattr(completion, name) for name in names})
    return End(details, completion.n_tokens, completion.logprob)


async def collect(gains: AsyncIterator[Gain]) -> list[Gain]:
    """All of every choice, in order; the answer of a task in place of what was written."""
    whole: dict[int, Gain] = {}
    async for gain in gains:
        if gain.index in whole:
            whole[gain.index].extend(gain)
        else:
            whole[gain.index] = gain
    for gain in whole.values():
        if gain.end and gain.end.details.answer is not None:
            gain.text = gain.end.details.answer
    return [whole[index] for index in sorted(whole)]
