"""What the ids so far do to the next logits: pure numpy, in the order and with the edge cases of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from runtime._checks import MAX_COUNT
from runtime.options import Options

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
Penalties = Callable[[Logits, Sequence[int], int], Logits]  # logits [n_vocab], ids so far, how many are the prompt's


def make_penalties(
    options: Options, eos_ids: Sequence[int], n_vocab: int, n_window: int = MAX_COUNT
) -> Penalties | None:
    """The function these options describe, or None where they leave the logits alone. Its input is not changed.

    n_window: only so many of the latest ids count, as many as the model can see: a call costs no more, however long
    the text has become. Raises ValueError for an id outside the vocabulary.
    """
    suppressed = {*options.suppress_ids}
    for id_ in (*suppressed, *(options.logit_bias or {}), *options.stop_ids):
        if not 0 <= id_ < n_vocab:
            named = "logit_bias, suppress_ids or stop_ids"
            raise ValueError(f"token id {id_} in {named} is outside the vocabulary of {n_vocab}")
    counting = bool(options.presence_penalty or options.frequency_penalty)
    if not (
        counting or options.repetition_penalty != 1 or options.no_repeat_ngram_size or options.logit_bias
        or suppressed or options.min_new_tokens
    ):  # fmt: skip
        return None
    bias = options.logit_bias or {}
    biased = np.array([*bias], np.int64)
    with np.errstate(over="ignore"):
        biases = np.array([*bias.values()], np.float64).astype(np.float32)
    never = np.array(sorted(suppressed), np.int64)
    late = np.array([id_ for id_ in {*eos_ids, *options.stop_ids} if 0 <= id_ < n_vocab], np.int64)
    sees_ids = counting or options.repetition_penalty != 1 or options.no_repeat_ngram_size

    @np.errstate(over="ignore")  # beyond float32 is infinite: certain, or never
    def apply(logits: Logits, ids: Sequence[int], n_prompt: int) -> Logits:
        logits = logits.copy()
        logits[biased] += biases
        if sees_ids:
            seen = np.array(ids[-n_window:], np.int64)
            penalize_repetition(logits, seen, options.repetition_penalty)
            if counting:
                n_generated = min(len(ids) - n_prompt, len(seen))
                generated = seen[len(seen) - n_generated :]
                penalize_counts(logits, generated, options.presence_penalty, options.frequency_penalty)
            logits[repeated_ngram_ids(seen, options.no_repeat_ngram_size)] = -np.inf
        if len(ids) - n_prompt < options.min_new_tokens:
            logits[late] = -np.inf
        logits[never] = -np.inf
        certain = np.isposinf(logits)
        return np.where(certain, np.float32(0), np.float32(-np.inf)) if certain.any() else logits

    return apply


def penalize_repetition(logits: Logits, ids: Ids, penalty: float) -> None:
    """Make ids seen before less likely, in place: Keskar et al., CTRL, 2019, section 4.1."""
    if penalty == 1:
        return
    penalty = min(max(penalty, _LEAST), _MOST)  # what float32 makes 0 or infinite would make 0 and infinity no number
    seen = np.unique(ids)
    values = logits[seen]
    logits[seen] = np.where(values < 0, values * penalty, values / penalty)


def penalize_counts(logits: Logits, ids: Ids, presence: float, frequency: float) -> None:
    """Subtract `presence` once and `frequency` for each time from ids generated before, in place: OpenAI's API."""
    seen, counts = np.unique(ids, return_counts=True)
    logits[seen] -= np.clip(presence + frequency * counts, -_MOST, _MOST).astype(np.float32)


def repeated_ngram_ids(ids: Ids, size: int) -> Ids:
    """The ids that would complete a sequence of `size` ids which occurs already; 0 is off."""
    n_starts = len(ids) - size + 1
    if size < 1 or n_starts < 1:
        return ids[:0]
    if size == 1:
        return ids
    begin = ids[n_starts:]
    # first by one id, which leaves few; then what is left by all of them
    starts = np.flatnonzero(ids[size - 2 : -1] == begin[-1])
    same = sliding_window_view(ids[:-1], size - 1)[starts] == begin
    return np.asarray(ids[starts[same.all(axis=1)] + size - 1])
