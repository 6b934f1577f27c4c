"""More of a reply, before it is written in OpenAI's form."""

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
    """What OpenAI's reply has no field for. See `runtime.Completion` and `runtime.tasks.Answer`."""

    finish_reason: str
    ids: list[int] = []
    seed: int | None = None
    n_truncated: int = 0
    n_slides: int = 0
    # Of a completion with a suffix alone: its log-probability after prompt and middle.
    suffix_logprob: float | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    # Of a task alone.
    answer: str | None = None
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
        """The reason in OpenAI's words."""
        return "stop" if self.details.finish_reason in ("eos", "stop") else "length"

    @property
    def mean_logprob(self) -> float:
        """Log-probability per token."""
        return self.logprob / max(1, self.n_tokens)

    @property
    def rank(self) -> float:
        """What `best_of` ranks by: log-probability per token, as OpenAI does; with a suffix that of the suffix."""
        of_suffix = self.details.suffix_logprob
        return self.mean_logprob if of_suffix is None else of_suffix


@dataclasses.dataclass
class Delta:
    """More of the choice `index`: text, its tokens where they are asked for, and at last its end."""

    index: int
    text: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    end: End | None = None

    def extend(self, later: Delta) -> None:
        """Append the delta that follows this one."""
        self.text += later.text
        self.tokens += later.tokens
        self.end = later.end


class Choice:
    """Turns the parts of a row into deltas.

    A token is shown together with the first character of its text. The tokens of a stop string are therefore not
    shown, since its text is not.
    """

    def __init__(self, model: Model, row: ServedRow, index: int, n_before: int, *, shows_tokens: bool) -> None:
        """`n_before`: characters of the prompt."""
        self.index = index
        self._reader = TokenReader(model, row.ids, n_before - row.prompt.n_healed) if shows_tokens else None
        self._n_characters = n_before
        self._waiting: list[Token] = []

    def read(self, part: Part) -> Delta:
        """The delta of one part."""
        self._n_characters += len(part.text)
        if self._reader:
            tops: Sequence[Mapping[int, float]] = part.top or [{}] * len(part.ids)
            self._waiting += map(self._reader.read, part.ids, part.logprobs, tops)
        end = describe(part.completion) if part.completion else None
        return Delta(self.index, part.text, self._take_shown(), end)

    def _take_shown(self) -> list[Token]:
        """The waiting tokens whose text has begun."""
        n = 0
        while n < len(self._waiting) and self._waiting[n].offset < self._n_characters:
            n += 1
        shown = self._waiting[:n]
        self._waiting = self._waiting[n:]
        return shown


def describe(completion: Completion) -> End:
    """The end of a row."""
    of_others = {"answer", "confidence", "probabilities", "suffix_logprob"}
    names = Details.model_fields.keys() - of_others
    details = Details(**{name: getattr(completion, name) for name in names})
    return End(details, completion.n_tokens, completion.logprob)


async def collect(deltas: AsyncIterator[Delta]) -> list[Delta]:
    """The deltas of each choice joined, in the order of the choices.

    The text of a task's choice is its answer, not what the model wrote.
    """
    whole: dict[int, Delta] = {}
    async for delta in deltas:
        if delta.index in whole:
            whole[delta.index].extend(delta)
        else:
            whole[delta.index] = delta
    for delta in whole.values():
        if delta.end and delta.end.details.answer is not None:
            delta.text = delta.end.details.answer
    return [whole[index] for index in sorted(whole)]
