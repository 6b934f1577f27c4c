"""The grid of absolute positions on which every pass over several ids ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtime.model.kv_cache import Cache, KeysValues, Logits

PREFILL_STEP = 256  # positions in one pass: bounds the memory of long prompts


def cut(ids: Sequence[int], begin: int = 0) -> Iterator[Sequence[int]]:
    """Ids that stand at position `begin` and after, a pass at a time.

    Passes end on multiples of PREFILL_STEP, since int8 logits depend a little on the cuts.
    """
    end = PREFILL_STEP - begin % PREFILL_STEP
    if ids:
        yield ids[:end]
    for start in range(end, len(ids), PREFILL_STEP):
        yield ids[start : start + PREFILL_STEP]


def last_line(position: int) -> int:
    """The last multiple of PREFILL_STEP up to a position: what stands before it does not depend on what follows."""
    return position - position % PREFILL_STEP


def prefill(
    cache: Cache,
    ids: Sequence[int],
    row: int = 0,
    interrupted: Callable[[], object] = lambda: None,
    known: KeysValues | None = None,
) -> Logits:
    """Make a row of the cache hold these ids and nothing else; returns the logits [n_vocab] after the last.

    `interrupted` is asked before each pass; if it says so, the logits are empty: [0]. `known`: keys and values of the
    first ids, up to a line of the grid and not of all; they are copied, and the passes are those of the other ids.
    Raises ValueError where there are no ids.
    """
    if not ids:
        raise ValueError("there is nothing to predict from: no ids")
    cache.clear_row(row)
    if known is not None:
        cache.write_row(row, known)
    n_known = cache.lengths[row]
    for chunk in cut(ids[n_known:], n_known):
        if interrupted():
            return np.empty(0, np.float32)
        logits: Logits = cache.extend(chunk, row=row)[-1]
    return logits
