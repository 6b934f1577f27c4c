"""What ends a continuation: a cancel callback or a deadline from outside, a stop string in its text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

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


class StopFilter:
    """The text before the first stop string to be complete. What may begin a stop string is held back.

    A stop string is found in the text that is shown, and in the text with its special tokens written out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self._shown: list[int] = []  # places in `_held` of the characters that are not a special token's
        self.stopped = False

    def push(self, piece: str, *, is_shown: bool = True) -> str:
        """The text that is certain now; once `stopped`, the last of it. `is_shown`: false for a special token."""
        if not self._stops or self.stopped:
            return piece if is_shown and not self.stopped else ""
        if is_shown:
            self._shown += range(len(self._held), len(self._held) + len(piece))
        self._held += piece
        found = [place for stop in self._stops for place in self._places(stop)]
        if found:
            self.stopped = True
            return self._take(min(found)[1])
        return self._take(min(self._begin(stop) for stop in self._stops))

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        held = self._take(len(self._held))
        return "" if self.stopped else held

    def _places(self, stop: str) -> Iterator[tuple[int, int]]:
        """End and beginning of a stop string in what is held."""
        if (begin := self._held.find(stop)) >= 0:
            yield begin + len(stop), begin
        if len(self._shown) < len(self._held) and (begin := self._visible.find(stop)) >= 0:
            yield self._shown[begin + len(stop) - 1] + 1, self._shown[begin]

    def _begin(self, stop: str) -> int:
        """Where in what is held the stop string may have begun; its end where it has not."""
        begin = len(self._held) - _overlap(self._held, stop)
        if len(self._shown) < len(self._held) and (n := _overlap(self._visible, stop)):
            return min(begin, self._shown[len(self._shown) - n])
        return begin

    @property
    def _visible(self) -> str:
        return "".join(self._held[place] for place in self._shown)

    def _take(self, n: int) -> str:
        """Let the first n characters go; returns those of them that are shown."""
        taken = "".join(self._held[place] for place in self._shown if place < n)
        self._held = self._held[n:]
        self._shown = [place - n for place in self._shown if place >= n]
        return taken


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
