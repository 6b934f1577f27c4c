"""What the ids so far do to the next logits: pure numpy, in the order and with the edge cases of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.options import Options

Logits = NDArray[np.float32]
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
Penalties = Callable[[Logits, Sequence[int], int], Logits]  # logits [n_vocab], ids so far, how many are the prompt's


def make_penalties(options: Options, eos_ids: Sequence[int], n_vocab: int) -> Penalties | None:
    """The function these options describe, or None where they leave the logits alone. Its input is not changed.

    Raises ValueError for an id outside the vocabulary.
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
    never = np.array(sorted(suppressed), np.int64)
    late = [id_ for id_ in {*eos_ids, *options.stop_ids} if 0 <= id_ < n_vocab]

    @np.errstate(over="ignore")  # beyond float32 is infinite: certain, or never
    def apply(logits: Logits, ids: Sequence[int], n_prompt: int) -> Logits:
        logits = logits.copy()
        add_bias(logits, options.logit_bias or {})
        penalize_repetition(logits, ids, options.repetition_penalty)
        if counting:
            penalize_counts(logits, ids[n_prompt:], options.presence_penalty, options.frequency_penalty)
        logits[repeated_ngram_ids(ids, options.no_repeat_ngram_size)] = -np.inf
        if len(ids) - n_prompt < options.min_new_tokens:
            logits[late] = -np.inf
        logits[never] = -np.inf
        certain = np.isposinf(logits)
        return np.where(certain, np.float32(0), np.float32(-np.inf)) if certain.any() else logits

    return apply


def add_bias(logits: Logits, bias: Mapping[int, float]) -> None:
    """Add to the logits of some ids, in place."""
    for id_, value in bias.items():
        logits[id_] += value


def penalize_repetition(logits: Logits, ids: Sequence[int], penalty: float) -> None:
    """Make ids seen before less likely, in place: Keskar et al., CTRL, 2019, section 4.1."""
    if penalty == 1:
        return
    penalty = min(max(penalty, _LEAST), _MOST)  # what float32 makes 0 or infinite would make 0 and infinity no number
    seen = np.unique(np.asarray(ids, np.int64))
    values = logits[seen]
    logits[seen] = np.where(values < 0, values * penalty, values / penalty)


def penalize_counts(logits: Logits, ids: Sequence[int], presence: float, frequency: float) -> None:
    """Subtract `presence` once and `frequency` for each time from ids generated before, in place: OpenAI's API."""
    seen, counts = np.unique(np.asarray(ids, np.int64), return_counts=True)
    logits[seen] -= np.clip(presence + frequency * counts, -_MOST, _MOST).astype(np.float32)


def repeated_ngram_ids(ids: Sequence[int], size: int) -> list[int]:
    """The ids that would complete a sequence of `size` ids which occurs already; 0 is off."""
    if size < 1 or len(ids) + 1 < size:
        return []
    begin = tuple(ids[len(ids) - size + 1 :])
    return [ids[at + size - 1] for at in range(len(ids) - size + 1) if tuple(ids[at : at + size - 1]) == begin]
