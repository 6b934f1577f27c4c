"""Prefill and decode loops: rows join a batch, take steps together, and leave it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtime.cache import Cache, Logits
from runtime.model import Model
from runtime.row import Row
from runtime.window import slide

PREFILL_STEP = 256  # positions in one pass: bounds the memory of long prompts
BATCH_SIZE = 16  # rows that decode together

Pieces = Iterator[tuple[int, str]]  # which row, what text


def prefill(cache: Cache, ids: Sequence[int], row: int = 0, interrupted: Callable[[], object] = lambda: None) -> Logits:
    """Fill an empty row of the cache; returns the logits [n_vocab] after its last id.

    Passes end on multiples of PREFILL_STEP, since int8 logits depend a little on the cuts. `interrupted` is asked
    before each; if it says so, the logits are empty: [0]. Raises ValueError where there are no ids.
    """
    if not ids:
        raise ValueError("there is nothing to predict from: no ids")
    cache.clear_row(row)
    for begin in range(0, len(ids), PREFILL_STEP):
        if interrupted():
            return np.empty(0, np.float32)
        logits: Logits = cache.extend(ids[begin : begin + PREFILL_STEP], row=row)[-1]
    return logits


def generate_pieces(model: Model, rows: Sequence[Row], batch_size: int = BATCH_SIZE) -> Pieces:
    """Decode all rows, at most `batch_size` at a time; text as it becomes certain, with the index of its row.

    Every row decodes as if alone, whatever its neighbours. A row's pieces may be empty.
    """
    n_slots = min(batch_size, len(rows))
    cache = model.new_cache(max(row.capacity for row in rows), n_slots)
    waiting, active = deque(enumerate(rows)), list[tuple[int, Row]]()
    while waiting or active:
        yield from _join(cache, waiting, active, n_slots)
        _slide(cache, active, model.config.n_positions)
        yield from _interrupt(active)
        _leave(cache, active)
        if active:
            yield from _step(cache, active)
            _leave(cache, active)


def _join(cache: Cache, waiting: deque[tuple[int, Row]], active: list[tuple[int, Row]], n_slots: int) -> Pieces:
    """Prefill waiting rows into free slots; a prompt that was just prefilled is copied."""
    done: tuple[int, list[int], Logits] | None = None  # slot, prompt, logits after it
    while waiting and len(active) < n_slots:
        index, row = waiting.popleft()
        slot, start = len(active), time.perf_counter()
        if done is not None and done[1] == row.window:
            cache.copy_row(done[0], slot)
        else:
            logits = prefill(cache, row.window, slot, row.interruption)
            done = (slot, row.window, logits.copy()) if logits.size else None
        row.prefill_seconds = time.perf_counter() - start
        active.append((index, row))
        if done is not None:
            yield index, row.accept(done[2])


def _interrupt(active: list[tuple[int, Row]]) -> Pieces:
    """End the rows that were cancelled or are late."""
    for index, row in active:
        if row.finish_reason is None and (reason := row.interruption()):
            yield index, row.end(reason)


def _slide(cache: Cache, active: list[tuple[int, Row]], n_positions: int) -> None:
    """Move the window of every row that has filled the context, all but its last id, which the next pass takes."""
    for slot, (_, row) in enumerate(active):
        if cache.lengths[slot] == n_positions:
            start = time.perf_counter()
            ids = slide(row.ids, row.n_pinned, n_positions)[:-1]
            prefill(cache, ids, slot, row.interruption)
            row.n_slides += 1
            row.decode_seconds += time.perf_counter() - start


def _step(cache: Cache, active: list[tuple[int, Row]]) -> Pieces:
    """One pass for every active row."""
    start = time.perf_counter()
    logits = cache.step([row.ids[-1] for _, row in active])
    seconds = time.perf_counter() - start
    for slot, (index, row) in enumerate(active):
        row.decode_seconds += seconds
        yield index, row.accept(logits[slot])


def _leave(cache: Cache, active: list[tuple[int, Row]]) -> None:
    """Take finished rows out; the last row moves into the slot that falls free."""
    for slot in reversed(range(len(active))):
        if active[slot][1].finish_reason is not None:
            last = len(active) - 1
            if slot != last:
                cache.copy_row(last, slot)
                active[slot] = active[last]
            active.pop()
