"""Passes outside of the batch leave the processor to the rows that decode, half of the time."""

from __future__ import annotations

import time
from collections.abc import Callable

WORK_SECONDS = 0.05  # of passes, before those under way get their turn
_LOOK_SECONDS = 0.01  # between two looks at whether anything still decodes


class Turns:
    """Called before each pass of one piece of work, such as scoring a text; raises what `check` raises.

    A pass of scoring has hundreds of tokens, one of decoding a few. Both run in the same threads of the processor, so
    without turns a long text would slow all continuations down for as long as it is scored. After WORK_SECONDS of
    passes the work waits as long as they took, unless nothing decodes.
    """

    def __init__(
        self,
        check: Callable[[], object],
        is_decoding: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._check = check
        self._is_decoding = is_decoding
        self._clock = clock
        self._sleep = sleep
        self._began = clock()

    def __call__(self) -> None:
        """Wait, if it is the turn of the rows that decode."""
        self._check()
        now = self._clock()
        worked = now - self._began
        if worked < WORK_SECONDS:
            return
        while self._is_decoding() and self._clock() < now + worked:
            self._sleep(_LOOK_SECONDS)
            self._check()
        self._began = self._clock()
