"""What the ids so far do to the next logits: pure numpy, in the order and with the edge cases of transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from runtime.generation.logits.dry import Dry, make_dry
from runtime.generation.logits.history import Ids, TokenHistory
from runtime.model.model import Model
from runtime.options import Options

Logits = NDArray[np.float32]
_LEAST = float(np.finfo(np.float32).tiny)
_MOST = float(np.finfo(np.float32).max)


class Penalties:
    """The penalties, biases and bans of some options, for any number of continuations.

    Each continuation has a history of its own, from `new_history`. Only the latest `n_window` ids count, as many as
    the model can see: a call costs no more, however long the text has become.
    """

    def __init__(
        self, options: Options, eos_ids: Collection[int], n_vocab: int, n_window: int, dry: Dry | None = None
    ) -> None:
        """Raises ValueError for an id outside the vocabulary."""
        self._dry = dry
        bias: Mapping[int, float] = options.logit_bias or {}
        _check_ids((*options.suppress_ids, *bias, *options.stop_ids), n_vocab)
        self._n_window = n_window
        self._repetition = options.repetition_penalty
        self._presence = options.presence_penalty
        self._frequency = options.frequency_penalty
        self._ngram_size = options.no_repeat_ngram_size
        self._min_new_tokens = options.min_new_tokens
        self._biased: Ids = np.array([*bias], np.int64)
        with np.errstate(over="ignore"):
            self._biases = np.array([*bias.values()], np.float64).astype(np.float32)
        self._suppressed: Ids = np.array(sorted({*options.suppress_ids}), np.int64)
        ends = {*eos_ids, *options.stop_ids}
        self._ends: Ids = np.array([id_ for id_ in ends if 0 <= id_ < n_vocab], np.int64)

    @property
    def changes_nothing(self) -> bool:
        """Whether the logits always stay as they are."""
        of_history = self._repetition != 1 or self._presence or self._frequency or self._ngram_size
        return not (of_history or self._dry or self._min_new_tokens or self._biased.size or self._suppressed.size)

    def new_history(self, n_prompt: int, n_ids: int) -> TokenHistory:
        """For a continuation whose first `n_prompt` ids are the prompt's, and that has at most `n_ids` with them."""
        return TokenHistory(n_prompt, min(self._n_window, n_ids), finds_repeats=self._finds_repeats)

    @property
    def _finds_repeats(self) -> bool:
        return self._ngram_size > 1 or self._dry is not None

    # Beyond float32 is infinite: certain, or never.
    @np.errstate(over="ignore")
    def __call__(self, logits: Logits, history: TokenHistory, n_new: int) -> Logits:
        """Penalized logits [n_vocab], in a new array. `n_new`: ids that have been generated."""
        logits = logits.copy()
        logits[self._biased] += self._biases
        penalize_repetition(logits, history.counts, self._repetition)
        penalize_counts(logits, history.generated_counts, self._presence, self._frequency)
        if self._dry:
            self._dry.penalize(logits, history)
        logits[history.completing(self._ngram_size)] = -np.inf
        if n_new < self._min_new_tokens:
            logits[self._ends] = -np.inf
        logits[self._suppressed] = -np.inf
        return settle(logits)


def settle(logits: Logits) -> Logits:
    """Logits without inf: a token at inf is certain, and all others are impossible beside it."""
    certain = np.isposinf(logits)
    return np.where(certain, np.float32(0), np.float32(-np.inf)) if certain.any() else logits


def make_penalties(
    options: Options, eos_ids: Collection[int], n_vocab: int, n_window: int, dry: Dry | None = None
) -> Penalties | None:
    """The penalties of these options, or None where they leave the logits alone. Raises as `Penalties` does."""
    penalties = Penalties(options, eos_ids, n_vocab, n_window, dry)
    return None if penalties.changes_nothing else penalties


def find_penalties(model: Model, options: Options) -> Penalties | None:
    """`make_penalties` for a model, with the DRY penalty that the options ask for."""
    dry = make_dry(
        model,
        options.dry_multiplier,
        options.dry_base,
        options.dry_allowed_length,
        tuple(options.dry_sequence_breakers),
    )
    config = model.config
    return make_penalties(options, config.eos_token_ids, config.vocab_size, config.n_positions, dry)


def _check_ids(ids: Collection[int], n_vocab: int) -> None:
    for id_ in ids:
        if not 0 <= id_ < n_vocab:
            named = "logit_bias, suppress_ids or stop_ids"
            raise ValueError(f"token id {id_} in {named} is outside the vocabulary of {n_vocab}")


def penalize_repetition(logits: Logits, counts: Counter[int], penalty: float) -> None:
    """Make ids seen before less likely, in place: Keskar et al., CTRL, 2019, section 4.1. 1 is off."""
    if penalty == 1:
        return
    # Clamp: outside float32's range the penalty becomes 0 or infinity, and 0 * infinity is NaN.
    penalty = min(max(penalty, _LEAST), _MOST)
    seen = np.fromiter(counts, np.int64, len(counts))
    values = logits[seen]
    logits[seen] = np.where(values < 0, values * penalty, values / penalty)


def penalize_counts(logits: Logits, counts: Counter[int], presence: float, frequency: float) -> None:
    """Subtract `presence` once and `frequency` for each time from ids generated before, in place: OpenAI's API."""
    if not (presence or frequency):
        return
    seen = np.fromiter(counts, np.int64, len(counts))
    times = np.fromiter(counts.values(), np.int64, len(counts))
    logits[seen] -= np.clip(presence + frequency * times, -_MOST, _MOST).astype(np.float32)
