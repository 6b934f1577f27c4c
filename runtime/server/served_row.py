"""A row that tells its request what it gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from runtime.completion import Completion
from runtime.model import Model
from runtime.options import Options
from runtime.row import Logits, Place, Row


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
        self.completion, self.error = later.completion, later.error


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
    ) -> None:
        """`post` takes the row's parts, in the event loop."""
        super().__init__(model, prompt_ids, options, place, n_top)
        self.post, self._n_posted = post, 0
        self.error: Exception | None = None

    def accept(self, logits: Logits) -> str:
        """See `Row.accept`; an error ends the row, and is in its last part."""
        try:
            piece = super().accept(logits)
            self.check_choice()
            return piece
        except Exception as error:
            self.error = error
            return self.end("cancelled")

    def part(self, text: str) -> Part:
        """Text, and the ids since the last part."""
        begin, self._n_posted = self._n_posted, len(self.ids) - self._n_prompt
        ids, logprobs, top = self.ids[self._n_prompt + begin :], self._logprobs[begin:], self._top[begin:]
        if self.error or self.finish_reason is None:
            return Part(text, ids, logprobs, top, error=self.error)
        return Part(text, ids, logprobs, top, self.completion())
