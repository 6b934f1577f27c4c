"""What ends a continuation: a cancel callback or a deadline from outside, a stop string in its text."""

from __future__ import annotations

import time

from runtime.generation.completion import FinishReason
from runtime.options import Options


class Interrupted(Exception):  # noqa: N818
    """Work was ended from outside before it had a result."""


class Interruption:
    """Why to end before the next pass. Once there is a reason, it stays."""

    def __init__(self, options: Options, since: float | None = None) -> None:
        """The time until the deadline begins at `since`, by `time.monotonic`; None is now."""
        began = time.monotonic() if since is None else since
        self._cancel = options.cancel
        self._deadline = None if options.deadline is None else began + options.deadline
        self.reason: FinishReason | None = None

    def __call__(self) -> FinishReason | None:
        """Ask the callback and the clock; None to go on."""
        if self.reason is None and self._cancel is not None and self._cancel():
            self.reason = "cancelled"
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "deadline"
        return self.reason

    def check(self) -> None:
        """Ask during work other than passes. Raises Interrupted."""
        if self():
            raise Interrupted(self.reason)
