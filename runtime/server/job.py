"""One request's work: its rows, what they gained and was not read yet, and its place in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

from runtime.server.served_row import Part, ServedRow


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
        self.n_units, self.ends = n_units, ends
        self.is_stopped = False  # by the server's own end
        self._is_cancelled = False
        self._submit, self._leave = submit, leave
        self._unread: dict[ServedRow, Part] = {}
        self._news = asyncio.Event()

    def is_cancelled(self) -> bool:
        """Whether to end: rows ask before every pass, in the scheduler's thread."""
        return self._is_cancelled

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
        """Decode rows; their parts as they come, until all have ended. Raises the error of a row that failed."""
        n_open = len(rows)
        self._submit(rows)
        while n_open:
            await self._news.wait()
            self._news.clear()
            unread, self._unread = self._unread, {}
            for row, part in unread.items():
                if part.error:
                    raise part.error
                n_open -= part.is_last
                yield row, part

    def close(self) -> None:
        """End what runs; calling it twice is calling it once."""
        self.cancel()
        self._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
