"""Token healing: the last token of the prompt is removed, and the first new token has to begin with its text.

A prompt that ends inside a word ends inside a token, after which the model would not expect the rest of the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from runtime.model.tokenizer import calls
from runtime.model.tokenizer.detokenizer import REPLACEMENT, Detokenizer


class Healing(NamedTuple):
    """What replaces the prompt's last token: any token that begins with the same text."""

    text: str  # of the removed token: the prompt's own, so not part of the continuation
    allowed: NDArray[np.int64]

    def restrict(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits with all but the allowed tokens at -inf."""
        restricted = np.full_like(logits, -np.inf)
        restricted[self.allowed] = logits[self.allowed]
        return restricted


def heal(tokenizer: Tokenizer, ids: Sequence[int]) -> Healing | None:
    """How to heal the end of a prompt; None where there is nothing before it, or it ends inside a character."""
    detokenizer = Detokenizer(tokenizer)
    before = detokenizer.decode(ids[:-1])
    text = detokenizer.decode(ids)[len(before) :]
    if len(ids) < 2 or not text or REPLACEMENT in text or before.endswith(REPLACEMENT):
        return None
    begin = calls.token_of(tokenizer, ids[-1])
    special = calls.added_tokens(tokenizer)
    vocabulary = calls.vocabulary(tokenizer).items()
    allowed = [id_ for token, id_ in vocabulary if begin is not None and token.startswith(begin) and id_ not in special]
    return Healing(text, np.array(sorted(allowed), np.int64))
