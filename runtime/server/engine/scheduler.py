"""One thread that decodes the rows of all requests together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

from runtime.generation.batch import Batch
from runtime.generation.row import Row
from runtime.model.kv_cache import Cache
from runtime.model.model import Model
from runtime.server.engine.prompt_cache import PromptCache
from runtime.server.engine.served_row import Part, ServedRow

JOIN_SECONDS = 0.2  # of prefill before the rows under way get their next id
SLICE_SECONDS = 1.0  # that a row keeps its slot while the row of a request that has none waits
MAX_PARKED = 8  # rows that have begun and wait: each keeps its keys and values in memory
RETRY_SECONDS = 0.1
STUCK_SECONDS = 60.0  # in one pass: the slowest machine takes a few for the largest model
_log = logging.getLogger("gpt2_edge.server")
News = list[tuple[ServedRow, Part]]


class Scheduler:
    """Rows wait in order, join as others leave, and post what they gain to the event loop."""

    def __init__(self, model: Model, n_rows: int, prompt_cache: PromptCache) -> None:
        """Raises ValueError where the model cannot decode so many rows together, MemoryError where they do not fit."""
        self._loop: asyncio.AbstractEventLoop | None = None  # while it runs
        self._batch = Batch(model, model.config.n_positions, n_rows)
        self._prompt_cache = prompt_cache
        self._waiting: deque[ServedRow] = deque()
        self._running: set[ServedRow] = set()
        self._joined: dict[ServedRow, float] = {}  # when each of the running got its slot
        self._parked: dict[ServedRow, Cache] = {}  # of the waiting, those that have begun
        self._began: float | None = None  # when the thread took up its present work
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

    def position(self, rows: Sequence[ServedRow]) -> int:
        """The place in the queue of a request, given its rows: 1 for the next one; 0 where one of them has begun."""
        with self._changed:
            waiting = [row for row in self._waiting if row not in self._parked]
        if not rows or any(row not in waiting for row in rows):
            return 0
        ahead = waiting[: waiting.index(rows[0])]
        return len({row.request for row in ahead}) + 1

    @property
    def n_prompt_cache_bytes(self) -> int:
        """Bytes of keys and values that the prompt cache holds."""
        return self._prompt_cache.n_bytes

    def submit(self, rows: Iterable[ServedRow]) -> None:
        """Decode these rows, after those that wait already. Raises RuntimeError where nobody decodes any more."""
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the decoding thread has ended; start the server again")
            self._waiting.extend(rows)
            self._changed.notify()

    @property
    def is_alive(self) -> bool:
        """Whether rows are decoded: the thread is there, and not in one pass for more than STUCK_SECONDS."""
        began = self._began
        is_there = self._thread.is_alive() and not self._is_closed
        return is_there and (began is None or time.monotonic() - began < STUCK_SECONDS)

    def close(self) -> None:
        """End the thread. Rows under way are dropped. One that does not end in time is left to the process's end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(STUCK_SECONDS)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._began = time.monotonic()
                self._work()
                self._began = None
        finally:
            self._abandon()

    def _work(self) -> None:
        """What there is to do now, short. An error ends the requests whose rows are under way, and no other."""
        try:
            self._drop_ended()
            self._join()
            self._post(self._batch.advance())
        # Of onnxruntime, of memory, or a Rust panic: no single row is the cause.
        except BaseException as error:
            failure = _describe(error)
        else:
            return
        # Outside of `except`: inside, the traceback would keep the memory of the failed pass.
        self._recover(failure)

    def _recover(self, failure: Exception) -> None:
        """End the requests under way, and begin with an empty batch: as often as memory is too short for that."""
        # The failure may be one of memory.
        self._prompt_cache.clear()
        while True:
            try:
                self._fail(failure)
                self._batch.clear()
                return
            except MemoryError:
                time.sleep(RETRY_SECONDS)

    def _abandon(self) -> None:
        """At the thread's end: what nobody decodes any more ends with an error."""
        with self._changed:
            self._is_closed = True
            self._running.update(self._waiting)
            self._waiting.clear()
        with contextlib.suppress(BaseException):
            self._fail(RuntimeError("the decoding thread has ended"))

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
            self._running.update(ended)
        for row in ended:
            self._parked.pop(row, None)
        self._post((row, row.end(row.interruption.reason or "cancelled")) for row in ended)

    def _join(self) -> None:
        """Give slots to waiting rows, for a while where others are under way."""
        self._due = time.monotonic() + JOIN_SECONDS
        while not len(self._batch) or time.monotonic() < self._due:
            row = self._next()
            if row is None or not (self._batch.n_free or self._make_room(row)):
                return
            with self._changed:
                self._waiting.remove(row)
                self._running.add(row)
            self._joined[row] = time.monotonic()
            if row in self._parked:
                self._batch.resume(row, self._parked.pop(row))
            else:
                self._post([(row, self._prefill(row))])
            self._began = time.monotonic()

    def _next(self) -> ServedRow | None:
        """Of the waiting rows the first whose request has fewest under way; one that has begun goes before others."""
        shares = self._shares()
        with self._changed:
            return min(self._waiting, key=lambda row: (shares[row.request], row not in self._parked), default=None)

    def _shares(self) -> Counter[object]:
        """How many rows each request has under way."""
        return Counter(row.request for row in self._running)

    def _make_room(self, row: ServedRow) -> bool:
        """Park a row of the request that has most under way, so that no request keeps others waiting.

        One that has fewer under way by two gets a slot at once, by one after the other's row had its SLICE_SECONDS.
        """
        shares = self._shares()
        now = time.monotonic()
        victim = max(self._joined, key=lambda one: (shares[one.request], now - self._joined[one]))
        ahead = shares[victim.request] - shares[row.request]
        if ahead < 1 or (ahead == 1 and now - self._joined[victim] < SLICE_SECONDS):
            return False
        if len(self._parked) >= MAX_PARKED:
            return False
        try:
            kept = self._batch.park(victim)
        except MemoryError:
            return False
        with self._changed:
            self._waiting.append(victim)
            self._leave_batch([victim])
        self._parked[victim] = kept
        return True

    def _leave_batch(self, rows: Iterable[ServedRow]) -> None:
        for row in rows:
            self._running.discard(row)
            self._joined.pop(row, None)

    def _prefill(self, row: ServedRow) -> str:
        """The text that a row begins with. An error of its own passes leaves it out of the batch, and no other."""
        try:
            return self._join_with_cache(row)
        except _SharedPassError:
            raise
        except BaseException as error:
            return row.fail(_describe(error))

    def _join_with_cache(self, row: ServedRow) -> str:
        """Prefill what the prompt cache does not have, and keep the rest there; returns the text that is certain."""
        ids = row.prompt.window
        if any(other.holds_prompt_of(row) for other in self._batch.rows):
            row.n_cached = len(ids)
        elif (prefix := self._prompt_cache.find(ids)) is not None:
            row.prefix = prefix
            row.n_cached = prefix.n_kept
        try:
            text = self._batch.join(row, self._advance_if_due)
        finally:
            # The slot has a copy of its keys and values.
            row.prefix = None
        # Without logits its prefill was interrupted.
        if row.prompt_logits is not None:
            self._prompt_cache.keep(ids, partial(self._batch.read_row, row))
        return text

    def _advance_if_due(self) -> None:
        """Let the rows under way go on, between the passes of a long prompt."""
        self._began = time.monotonic()
        if not len(self._batch) or time.monotonic() < self._due:
            return
        try:
            self._post(self._batch.advance())
        except BaseException as error:
            raise _SharedPassError(str(error)) from error
        self._due = time.monotonic() + JOIN_SECONDS

    def _post(self, events: Iterable[tuple[Row, str]]) -> None:
        """Hand what rows gained to the event loop, in one call; also what they gained before an error."""
        news: News = []
        try:
            for row, text in events:
                served = cast(ServedRow, row)
                news.append((served, served.part(text)))
        finally:
            self._hand_over(news)

    def _fail(self, error: Exception) -> None:
        """End all rows under way; those whose last part was handed over are not among them."""
        self._hand_over([(row, Part(error=error)) for row in self._running])

    def _hand_over(self, news: News) -> None:
        if news and self._loop:
            # RuntimeError: the loop is closed, and no client is left.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_deliver, news)
        self._leave_batch(row for row, part in news if part.is_last)


class _SharedPassError(Exception):
    """A pass of the rows under way failed while another row was about to join them."""


_FAILURE = RuntimeError("a pass failed, and there was no memory to say why")


def _describe(error: BaseException) -> Exception:
    """An error for clients, which holds nothing of the pass that failed; the log has all of it."""
    try:
        _log.error("a pass failed; the requests that it was for end with an error", exc_info=error)
        return RuntimeError(f"a pass failed: {type(error).__name__}: {error}")
    # Memory may be too short for that, too.
    except BaseException:
        return _FAILURE


def _deliver(news: Sequence[tuple[ServedRow, Part]]) -> None:
    for row, part in news:
        row.post(row, part)
