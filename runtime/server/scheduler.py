"""One thread that decodes the rows of all requests together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from runtime.batch import Batch
from runtime.model import Model
from runtime.row import Row
from runtime.server.served_row import Part, ServedRow

JOIN_SECONDS = 0.2  # of prefill before the rows under way get their next id
_log = logging.getLogger("gpt2_edge.server")
News = list[tuple[ServedRow, Part]]


class Scheduler:
    """Rows wait in order, join as others leave, and post what they gain to the event loop."""

    def __init__(self, model: Model, n_rows: int) -> None:
        """Raises ValueError where the model cannot decode so many rows together, MemoryError where they do not fit."""
        self._model, self._n_rows = model, n_rows
        self._loop: asyncio.AbstractEventLoop | None = None  # while it runs
        self._batch = self._new_batch()
        self._waiting: deque[ServedRow] = deque()
        self._running: set[ServedRow] = set()
        self._due = 0.0  # when rows under way are to get their next id
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="gpt2-edge-decode", daemon=True)

    def start(self) -> None:
        """Begin to decode, for the event loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def n_running(self) -> int:
        """Rows in the batch."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Rows that wait for a slot."""
        return len(self._waiting)

    def submit(self, rows: Iterable[ServedRow]) -> None:
        """Decode these rows, after those that wait already."""
        with self._changed:
            self._waiting.extend(rows)
            self._changed.notify()

    def close(self) -> None:
        """End the thread. Rows under way are dropped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _new_batch(self) -> Batch:
        return Batch(self._model, self._model.config.n_positions, self._n_rows)

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._drop_ended()
                self._join()
                self._post(self._batch.advance())
            except Exception as error:  # onnxruntime's, of memory: nothing a single row is to blame for
                _log.exception("a pass failed; the requests under way end with an error")
                self._fail(error)

    def _wait_for_work(self) -> bool:
        """Whether to go on, once there is something to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_closed)
            return not self._is_closed

    def _drop_ended(self) -> None:
        """End the rows whose client has left, or whose time is over, before they had a slot."""
        with self._changed:
            ended = [row for row in self._waiting if row.interruption()]
            self._waiting = deque(row for row in self._waiting if not row.interruption.reason)
        self._post((row, row.end(row.interruption.reason or "cancelled")) for row in ended)

    def _join(self) -> None:
        """Prefill waiting rows into free slots, for a while where others are under way."""
        self._due = time.monotonic() + JOIN_SECONDS
        while self._batch.n_free and (not self._running or time.monotonic() < self._due):
            with self._changed:
                if not self._waiting:
                    return
                row = self._waiting.popleft()
            self._running.add(row)
            self._post([(row, self._batch.join(row, self._advance_if_due))])

    def _advance_if_due(self) -> None:
        """Let the rows under way go on, between the passes of a long prompt."""
        if len(self._batch) and time.monotonic() >= self._due:
            self._post(self._batch.advance())
            self._due = time.monotonic() + JOIN_SECONDS

    def _post(self, events: Iterable[tuple[Row, str]] | Iterator[tuple[Row, str]]) -> None:
        """Hand what rows gained to the event loop, in one call."""
        news: News = []
        for row, text in events:
            served = cast(ServedRow, row)
            news.append((served, served.part(text)))
            if served.finish_reason is not None:
                self._running.discard(served)
        self._hand_over(news)

    def _fail(self, error: Exception) -> None:
        self._hand_over([(row, Part(error=error)) for row in self._running])
        self._running.clear()
        self._batch = self._new_batch()

    def _hand_over(self, news: News) -> None:
        if news and self._loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(_deliver, news)


def _deliver(news: Sequence[tuple[ServedRow, Part]]) -> None:
    for row, part in news:
        row.post(row, part)
