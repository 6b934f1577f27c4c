"""A caller's own function between penalties and sampler, and what it may return."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.generation.logits.penalties import settle
from runtime.options import LogitsProcessor

Logits = NDArray[np.float32]


class ProcessorFailed(Exception):  # noqa: N818
    """A logits processor raised, or returned what are no logits.

    error: the exception, with the traceback of the function alone.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def process(processor: LogitsProcessor, ids: Sequence[int], logits: Logits) -> Logits:
    """What the function makes of the logits [n_vocab]. It gets copies, so it may write into them.

    Raises ProcessorFailed where the function raises an Exception, and for a result that is no array of the same shape
    and type, or that has NaN in it.
    """
    try:
        result = processor(tuple(ids), logits.copy())
        _check(result, logits)
    except Exception as error:
        # This frame, and those that called it, would keep a model and its caches alive.
        trace = error.__traceback__
        raise ProcessorFailed(error.with_traceback(trace.tb_next if trace else None)) from None
    return settle(result)


def _check(result: object, logits: Logits) -> None:
    expected = f"a float32 array of shape {logits.shape} is expected"
    if result is None:
        raise TypeError(f"logits_processor returned None; {expected}, the one that it was given or another")
    if not isinstance(result, np.ndarray):
        raise TypeError(f"logits_processor returned a {type(result).__name__}; {expected}")
    if result.dtype != np.float32:
        raise TypeError(f"logits_processor returned an array of {result.dtype}; {expected}: use astype(np.float32)")
    if result.shape != logits.shape:
        raise ValueError(f"logits_processor returned an array of shape {result.shape}; {expected}")
    if np.isnan(result).any():
        at = int(np.isnan(result).argmax())
        raise ValueError(f"logits_processor returned NaN for token id {at}; numbers are expected, -inf forbids a token")
