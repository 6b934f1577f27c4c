"""Chunked prefill on a fixed grid: every pass over a prompt ends at a multiple of `PREFILL_STEP` positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtime.model.kv_cache import Cache, KeysValues, Logits

PREFILL_STEP = 256
"""The most positions of one pass, which bounds the memory of long prompts."""


def cut(ids: Sequence[int], begin: int = 0) -> Iterator[Sequence[int]]:
    """Cut ids, the first of which is at position `begin`, into the chunks of passes.

    Chunks end at multiples of PREFILL_STEP, since int8 logits depend a little on where a prompt is cut.
    """
    end = PREFILL_STEP - begin % PREFILL_STEP
    if ids:
        yield ids[:end]
    for start in range(end, len(ids), PREFILL_STEP):
        yield ids[start : start + PREFILL_STEP]


def last_line(position: int) -> int:
    """The last multiple of PREFILL_STEP up to a position. Keys and values before it do not depend on later ids."""
    return position - position % PREFILL_STEP


def prefill(
    cache: Cache,
    ids: Sequence[int],
    row: int = 0,
    interrupted: Callable[[], object] = lambda: None,
    known: KeysValues | None = None,
) -> Logits:
    """Fill a row of the cache with these ids; returns the logits [n_vocab] after the last.

    interrupted: called before each pass; if it returns true, prefill ends with empty logits [0]. known: keys and values
    of the first ids, up to a multiple of PREFILL_STEP and not of all ids; they are copied, and only the other ids are
    computed. Raises ValueError if there are no ids.
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
