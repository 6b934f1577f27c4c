"""A row that tells its request what it gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from runtime.generation.completion import Completion, FinishReason, Place
from runtime.generation.row import Logits, Row
from runtime.model.model import Model
from runtime.options import Options
from runtime.server.engine.form_time import RequestInterruption


@dataclasses.dataclass
class Part:
    """What a row gained since the part before: made in the scheduler's thread, read in the event loop."""

    text: str = ""
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)  # as many as ids, where they are recorded
    top: list[dict[int, float]] = dataclasses.field(default_factory=list)
    completion: Completion | None = None  # of the last part
    error: Exception | None = None  # likewise

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.completion is not None or self.error is not None

    def extend(self, later: Part) -> None:
        """Take in the part that follows."""
        self.text += later.text
        self.ids += later.ids
        self.logprobs += later.logprobs
        self.top += later.top
        self.completion = later.completion
        self.error = later.error


class ServedRow(Row):
    """A row whose failure is its own: another request's row goes on."""

    def __init__(
        self,
        model: Model,
        prompt_ids: Sequence[int],
        options: Options,
        place: Place,
        n_top: int | None,
        post: Callable[[ServedRow, Part], None],
        interruption: RequestInterruption,
    ) -> None:
        """`post` takes the row's parts, in the event loop; `interruption` is that of the request."""
        with interruption.searching():
            super().__init__(model, prompt_ids, options, place, n_top, interruption=interruption)
        self.request = interruption
        self.post = post
        self.error: Exception | None = None
        self.n_cached = 0  # tokens of the prompt that were not computed for it
        self._is_structured = options.form is not None
        self._n_posted = 0  # new ids that are in a part already

    def accept(self, logits: Logits) -> str:
        """See `Row.accept`; an error ends the row, and is in its last part."""
        try:
            piece = self._accept_in_time(logits)
            self.check_choice()
            return piece
        # A Rust panic of the tokenizer is no Exception.
        except BaseException as error:
            return self.fail(error)

    def _accept_in_time(self, logits: Logits) -> str:
        if not self._is_structured:
            return super().accept(logits)
        with self.request.stepping():
            return super().accept(logits)

    def end(self, reason: FinishReason) -> str:
        """See `Row.end`; an error of the tokenizer's is in the last part."""
        try:
            return super().end(reason)
        except BaseException as error:
            return self.fail(error)

    def part(self, text: str) -> Part:
        """Text, and the ids since the last part; of a row that failed, its error."""
        try:
            return self._part(text)
        except BaseException as error:
            self.fail(error)
            return Part(error=self.error)

    def fail(self, error: BaseException) -> str:
        """End here, with no more calls that may fail. Returns no text."""
        plain = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        # The frames of a traceback would keep this row, its model and the memory of the failed call alive.
        self.error = plain.with_traceback(None)
        self.finish_reason = "cancelled"
        return ""

    def _part(self, text: str) -> Part:
        new = self.record.since(self._n_posted)
        self._n_posted = self.record.n_new
        part = Part(text, new.ids, new.logprobs, new.top_logprobs, error=self.error)
        if self.error is None and self.finish_reason is not None:
            part.completion = self.completion()
        return part
