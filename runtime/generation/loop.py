"""The decode loop: waiting rows join a batch as others leave it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from runtime._checks import Prompt
from runtime._lock import importing
from runtime.generation.batch import Batch, Events
from runtime.generation.completion import Place
from runtime.generation.context_window import tokenize
from runtime.generation.row import Row
from runtime.model.model import Model
from runtime.options import Options
from runtime.prefixes.prefix import Prefix

BATCH_SIZE = 16  # rows that decode together


def make_rows(
    model: Model,
    prompts: Sequence[Prompt],
    options: Sequence[Options],
    n: int = 1,
    n_top: int | None = None,
    prefix: Prefix | None = None,
) -> list[Row]:
    """`n` rows for each prompt, with its options. See `Row` for the rest, and for what is raised."""
    rows = []
    for index, (prompt, chosen) in enumerate(zip(prompts, options, strict=True)):
        ids = tokenize(model, prompt, chosen)
        if prefix is not None:
            prefix.check(prompt)
        rows += [Row(model, ids, chosen, Place(index, sample), n_top, prefix) for sample in range(n)]
    return rows


def generate_pieces(
    model: Model, rows: Sequence[Row], batch_size: int = BATCH_SIZE, draft: Model | None = None
) -> Events:
    """Decode all rows, at most `batch_size` at a time; text as it becomes certain, with its row.

    A draft proposes ids for every row: see `runtime.generation.speculation.step`.
    """
    batch = _make_batch(model, rows, min(batch_size, len(rows)), draft)
    waiting = deque(rows)
    while waiting or len(batch):
        while waiting and batch.n_free:
            row = waiting.popleft()
            yield row, batch.join(row)
        yield from batch.advance()


def stream_pieces(
    model: Model, rows: Sequence[Row], batch_size: int = BATCH_SIZE, draft: Model | None = None
) -> Events:
    """`generate_pieces` for callers that see nothing but pieces: the error of a row is raised at the end."""
    yield from generate_pieces(model, rows, batch_size, draft)
    for row in rows:
        row.check_choice()


def _make_batch(model: Model, rows: Sequence[Row], n_slots: int, draft: Model | None) -> Batch:
    capacity = max(row.prompt.capacity for row in rows)
    if draft is None and not any(row.lookup for row in rows):
        return Batch(model, capacity, n_slots)
    with importing:
        # Imported only where it is used: importing the package stays quick.
        from runtime.generation.speculation.step import SpeculativeStep

    return Batch(model, capacity, n_slots, SpeculativeStep(model, capacity, draft))
