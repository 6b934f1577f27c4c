"""Rows that decode together: each joins with a prefill of its own, and leaves when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from runtime.generation.context_window import slide
from runtime.generation.row import Row
from runtime.model.kv_cache import Cache, KeysValues
from runtime.model.model import Model
from runtime.model.prefill import prefill
from runtime.prefixes.prefix import known

# A row, and the text that is certain of it now, which may be empty.
Events = Iterator[tuple[Row, str]]


class Step(Protocol):
    """How rows under way get their next ids."""

    def __call__(self, cache: Cache, rows: Sequence[Row], /) -> Events:
        """Give each row at least one id, or its end. Row i of the cache holds all ids of rows[i] but the last."""


def plain_step(cache: Cache, rows: Sequence[Row]) -> Events:
    """One pass over all rows, one id for each."""
    start = time.perf_counter()
    logits = cache.step([row.ids[-1] for row in rows])
    seconds = time.perf_counter() - start
    for slot, row in enumerate(rows):
        row.record.decode_seconds += seconds
        yield row, row.accept(logits[slot])


class Batch:
    """Slots of one cache, and the rows in them. Every row decodes as if alone, whatever its neighbours."""

    def __init__(self, model: Model, capacity: int, n_slots: int, step: Step = plain_step) -> None:
        """Room for `n_slots` rows of up to `capacity` tokens each."""
        self._model = model
        self._cache = model.new_cache(capacity, n_slots)
        self._n_slots = n_slots
        self._step = step
        self._rows: list[Row] = []  # by slot

    def __len__(self) -> int:
        """Rows under way."""
        return len(self._rows)

    @property
    def n_free(self) -> int:
        """Slots that a row can join."""
        return self._n_slots - len(self._rows)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Those under way."""
        return tuple(self._rows)

    def join(self, row: Row, meanwhile: Callable[[], object] = lambda: None) -> str:
        """Prefill a row into a free slot and choose its first id; returns the text that is certain.

        The prompt of a row under way that has the same one is copied. `meanwhile` is called before each pass, and may
        advance the rows under way.
        """
        start = time.perf_counter()
        slot = len(self._rows)
        same = next((at for at, other in enumerate(self._rows) if other.holds_prompt_of(row)), None)
        if same is None:
            self._prefill(row, slot, meanwhile)
        else:
            self._cache.copy_row(same, slot, len(row.prompt.window))
            row.prompt_logits = self._rows[same].prompt_logits
        # Rows may have left during the prefill: the slot after the last row is another one then.
        if slot != len(self._rows):
            self._cache.copy_row(slot, len(self._rows))
        self._rows.append(row)
        row.record.prefill_seconds = time.perf_counter() - start
        return "" if row.prompt_logits is None else row.accept(row.prompt_logits)

    def _prefill(self, row: Row, slot: int, meanwhile: Callable[[], object]) -> None:
        def interrupted() -> object:
            meanwhile()
            return row.interruption()

        window = row.prompt.window
        logits = prefill(self._cache, window, slot, interrupted, known(row.prefix, window))
        row.prompt_logits = logits.copy() if logits.size else None

    def park(self, row: Row) -> Cache:
        """Take a row out to let it go on later; returns what `resume` needs. Raises MemoryError where that has no room.

        Nothing is computed again, so the row's text does not depend on it.
        """
        slot = self._rows.index(row)
        length = self._cache.lengths[slot]
        kept = self._model.new_cache(length)
        kept.write_row(0, self._cache.read_row(slot, length))
        self._free(slot)
        return kept

    def resume(self, row: Row, kept: Cache) -> None:
        """Put a parked row into a free slot."""
        self._cache.write_row(len(self._rows), kept.read_row(0, kept.lengths[0]))
        self._rows.append(row)

    def read_row(self, row: Row, end: int) -> KeysValues:
        """A copy of the keys and values of the first `end` tokens of a row under way."""
        return self._cache.read_row(self._rows.index(row), end)

    def clear(self) -> None:
        """Take all rows out where they are. The cache stays: nothing is allocated."""
        for row in self._rows:
            row.prompt_logits = None
        self._rows.clear()
        for slot in range(self._n_slots):
            self._cache.clear_row(slot)

    def advance(self) -> Events:
        """At least one id more for every row under way; rows that are finished, cancelled or late leave."""
        self._slide()
        for row in self._rows:
            if row.finish_reason is None and (reason := row.interruption()):
                yield row, row.end(reason)
        self._leave()
        if self._rows:
            yield from self._step(self._cache, self._rows)
            self._leave()

    def _slide(self) -> None:
        """Move the window of every row that has filled the context, all but its last id, which the next pass takes."""
        n_positions = self._model.config.n_positions
        for slot, row in enumerate(self._rows):
            if self._cache.lengths[slot] == n_positions:
                start = time.perf_counter()
                ids = slide(row.ids, row.prompt.n_pinned, n_positions)[:-1]
                prefill(self._cache, ids, slot, row.interruption, known(row.prefix, ids))
                row.record.n_slides += 1
                row.record.decode_seconds += time.perf_counter() - start

    def _leave(self) -> None:
        """Take finished rows out; the last row moves into the slot that falls free."""
        for slot in reversed(range(len(self._rows))):
            if self._rows[slot].finish_reason is not None:
                self._rows[slot].prompt_logits = None
                self._free(slot)

    def _free(self, slot: int) -> None:
        last = len(self._rows) - 1
        if slot != last:
            self._cache.copy_row(last, slot)
            self._rows[slot] = self._rows[last]
        self._rows.pop()
