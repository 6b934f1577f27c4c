"""One request's work: its rows, what they gained and was not read yet, and its place in the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

from runtime.server.engine.served_row import Part, ServedRow
from runtime.server.errors import CLOSED_REQUEST, ApiError

_LATE = 10.0  # seconds beyond a request's time in which its rows have to have ended


class Job:
    """Leaving `with` ends the rows that still run, and makes room for others.

    What a slow reader leaves is merged, so that it is never more than one part a row.
    """

    def __init__(
        self, n_units: int, ends: float, submit: Callable[[Sequence[ServedRow]], None], leave: Callable[[Job], None]
    ) -> None:
        """`n_units`: continuations and texts that count against the queue's limit; `leave` is called at the end.

        `ends`: by the event loop's clock, when the request's time is over.
        """
        self.n_units = n_units
        self.ends = ends
        self.started = time.monotonic()
        self.rows_end = ends  # sooner where the client asks for less
        self.n_bytes = 0  # of its reply, at most about so many
        self.rows: Sequence[ServedRow] = ()  # that decode or wait
        self.is_stopped = False  # by the server's own end
        self._is_cancelled = False
        self._is_closed = False
        self._n_working = 0  # functions that threads run for it
        self._submit = submit
        self._leave = leave
        self._unread: dict[ServedRow, Part] = {}
        self._news = asyncio.Event()

    def is_cancelled(self) -> bool:
        """Whether to end: rows ask before every pass, in the scheduler's thread."""
        return self._is_cancelled

    def check(self) -> None:
        """Raise ApiError where no client waits for the request any more."""
        if self._is_cancelled:
            raise ApiError("the client has left", status=CLOSED_REQUEST)

    def end_rows_within(self, seconds: float) -> None:
        """By the event loop's clock, so long after the request's arrival."""
        self.rows_end = min(self.ends, self.started + seconds)

    def cancel(self) -> None:
        """End the rows at their next pass."""
        self._is_cancelled = True

    def post(self, row: ServedRow, part: Part) -> None:
        """Keep a part until it is read."""
        if row in self._unread:
            self._unread[row].extend(part)
        else:
            self._unread[row] = part
        self._news.set()

    async def decode(self, rows: Sequence[ServedRow]) -> AsyncIterator[tuple[ServedRow, Part]]:
        """Decode rows; their parts as they come, until all have ended. Raises the error of a row that failed.

        Raises RuntimeError where nothing comes from the scheduler's thread by the end of the request's time.
        """
        n_open = len(rows)
        self.rows = rows
        self._submit(rows)
        while n_open:
            await self._wait_for_news()
            unread = self._unread
            self._unread = {}
            for row, part in unread.items():
                if part.error:
                    raise part.error
                n_open -= part.is_last
                yield row, part

    async def _wait_for_news(self) -> None:
        try:
            async with asyncio.timeout_at(self.rows_end + _LATE):
                await self._news.wait()
        except TimeoutError:
            raise RuntimeError("the decoding thread does not answer") from None
        self._news.clear()

    def begin_work(self) -> None:
        """A thread begins to work for it: it counts until that has ended, whether its client waits or not."""
        self._n_working += 1

    def end_work(self) -> None:
        """A thread has ended what it did."""
        self._n_working -= 1
        self._leave_if_over()

    def close(self) -> None:
        """End what runs; calling it twice is calling it once."""
        self.cancel()
        self._is_closed = True
        self._leave_if_over()

    def _leave_if_over(self) -> None:
        if self._is_closed and not self._n_working:
            self._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
