"""The decode loop: waiting rows join a batch as others leave it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from runtime.batch import Batch, Events
from runtime.model import Model
from runtime.row import Row

BATCH_SIZE = 16  # rows that decode together


def generate_pieces(model: Model, rows: Sequence[Row], batch_size: int = BATCH_SIZE) -> Events:
    """Decode all rows, at most `batch_size` at a time; text as it becomes certain, with its row."""
    batch = Batch(model, max(row.capacity for row in rows), min(batch_size, len(rows)))
    waiting = deque(rows)
    while waiting or len(batch):
        while waiting and batch.n_free:
            row = waiting.popleft()
            yield row, batch.join(row)
        yield from batch.advance()
