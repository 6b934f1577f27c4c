"""Stop strings: the text before the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class StopFilter:
    """The text before the first stop string to be complete. What may begin a stop string is held back.

    A stop string is found in the text that is shown, and in the text with its special tokens written out.

    >>> stop_filter = StopFilter(["User:"])
    >>> stop_filter.push("Hello. Us"), stop_filter.push("er: hi")
    ('Hello. ', '')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        # places in `_held` of the characters that are not a special token's
        self._shown: list[int] = []
        self.stopped = False

    def push(self, piece: str, *, is_shown: bool = True) -> str:
        """The text that is certain now; once `stopped`, the last of it. `is_shown`: false for a special token."""
        if self.stopped:
            return ""
        if not self._stops:
            return piece if is_shown else ""
        if is_shown:
            self._shown += range(len(self._held), len(self._held) + len(piece))
        self._held += piece
        found = [place for stop in self._stops for place in self._places(stop)]
        if found:
            self.stopped = True
            _, begin = min(found)
            return self._take(begin)
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
