"""What ends the rows of a request, and how much processor time their structured output may take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from runtime.generation.stopping import Interruption
from runtime.options import Options
from runtime.server.errors import ApiError

SEARCH_SECONDS = 10.0  # before the first pass, for all rows of a request; common schemas take 3 to 30 ms
STEP_SECONDS = 0.02  # for one row between two passes, while all others wait; common schemas take 0.4 ms
BURST_SECONDS = 1.0  # beyond that, for all rows of a request together


class RequestInterruption(Interruption):
    """A request ends when its client leaves, or when its time is over, which begins at its arrival.

    Structured output that takes too long is an error, and never another text: no text depends on a clock.
    """

    def __init__(self, options: Options, since: float) -> None:
        super().__init__(options, since)
        self._left = SEARCH_SECONDS  # of this thread's time
        self._until = float("inf")

    def check(self) -> None:
        """See `Interruption.check`. Raises ApiError for structured output that takes too long."""
        super().check()
        self._check_time()

    def _check_time(self) -> None:
        if time.thread_time() > self._until:
            told = "the structured output takes this server too long: make it simpler, or ask for fewer continuations"
            raise ApiError(told, code="form_too_hard")

    @contextlib.contextmanager
    def searching(self) -> Iterator[None]:
        """Before the first pass."""
        with self._spending():
            yield

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Between two passes."""
        self._left += STEP_SECONDS
        with self._spending():
            yield
        self._left = min(self._left, BURST_SECONDS)

    @contextlib.contextmanager
    def _spending(self) -> Iterator[None]:
        began = time.thread_time()
        self._until = began + self._left
        yield
        self._check_time()
        self._left -= time.thread_time() - began
        self._until = float("inf")
