"""What ends the rows of a request, and how much of the processor's time the keeping of their form may take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from runtime.generation.stopping import Interruption
from runtime.options import Options
from runtime.server.errors import ApiError

SEARCH_SECONDS = 10.0  # before the first pass, for all rows of a request; forms in use take 3 to 30 ms
STEP_SECONDS = 0.02  # for one row between two passes, for which all others wait; forms in use take 0.4 ms
BURST_SECONDS = 1.0  # beyond that, for all rows of a request together


class RequestInterruption(Interruption):
    """Its client leaves, or its time is over, which begins at its arrival.

    A form whose keeping takes longer is an error, and never another text: what is written depends on no clock.
    """

    def __init__(self, options: Options, since: float) -> None:
        super().__init__(options, since)
        self._left = SEARCH_SECONDS  # of this thread's time
        self._until = float("inf")

    def check(self) -> None:
        """See `Interruption.check`. Raises ApiError for a form that takes too long."""
        super().check()
        self._check_time()

    def _check_time(self) -> None:
        if time.thread_time() > self._until:
            told = "the form takes too long to keep on this server: make it simpler, or ask for fewer continuations"
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
