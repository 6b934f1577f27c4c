"""The likeliest word that may end a text, with the stop-word filter of the GPT-2 paper, section 3.3."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

import numpy as np

from runtime._math import log_softmax
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.detokenizer import REPLACEMENT
from runtime.scoring.context import SharedContext

MAX_WORD_TOKENS = 8
# How many first tokens are tried.
N_CANDIDATES = 64
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_STOP_WORDS = """
a an the this that these those such some any each every either neither both all another other others
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself
we us our ours ourselves they them their theirs themselves who whom whose which what
and but or nor so yet for if because as than then while when where why how whether though although until unless
of at by in on to from with without into onto upon about above below over under between among through during
before after against toward towards off out up down within across along behind beside beyond near
am is are was were be been being do does did doing have has had having can could will would shall should may might
must not no there here again further once just only own same too very more most much many few also even still ever
don't doesn't didn't isn't aren't wasn't weren't won't wouldn't can't couldn't shouldn't haven't hasn't hadn't
i'm i'd i'll i've you're you'd you'll you've he's he'd he'll she's she'd she'll it's it'll we're we'd we'll we've
they're they'd they'll they've that's there's
"""
# English words that seldom end a sentence.
STOP_WORDS = frozenset(_STOP_WORDS.split())


def find_word(text: str) -> str:
    """The first word of a text, without the punctuation around it; "" where there is none.

    >>> find_word(' "Stop," he said')
    'Stop'
    """
    match = _WORD.search(text)
    return match[0] if match else ""


def predict_word(
    model: Model, shared: SharedContext, stop_words: Collection[str], *, begins_text: bool = False
) -> tuple[str, float]:
    """The first of the likeliest words that is no stop word, and its probability: the product over its tokens.

    The tokens that may begin a word are tried in the order of their probability. Each is completed greedily to a
    word, and the whole word is compared with the stop words: `the` is skipped, `theme` is not.
    begins_text: no word stands before, so the first token need not begin with a space.
    Returns ("", 0.0) where none of the N_CANDIDATES likeliest tokens leads to a word.
    """
    logprobs = log_softmax(shared.logits)
    for id_ in np.argsort(-logprobs, kind="stable")[:N_CANDIDATES].tolist():
        first: str = calls.decode(model.tokenizer, [id_])
        if not first.strip() or not (begins_text or first[0].isspace()):
            continue
        word, logprob = _complete(model, shared, id_)
        if word and word.lower().replace("’", "'") not in stop_words:
            return word, math.exp(logprob + float(logprobs[id_]))
    return "", 0.0


def _complete(model: Model, shared: SharedContext, first_id: int) -> tuple[str, float]:
    """The word that begins with this token, and the log-probability of its other tokens."""
    ids = [first_id]
    logprob = 0.0
    row = shared.begin()
    for _ in range(MAX_WORD_TOKENS - 1):
        logprobs = log_softmax(next(shared.extend(row, ids[-1:])))[0]
        id_ = int(logprobs.argmax())
        if _is_complete(model, ids, id_):
            break
        ids.append(id_)
        logprob += float(logprobs[id_])
    return find_word(calls.decode(model.tokenizer, ids)), logprob


def _is_complete(model: Model, ids: list[int], next_id: int) -> bool:
    """Whether the next token adds nothing to the word."""
    if next_id in model.config.eos_token_ids:
        return True
    word = find_word(calls.decode(model.tokenizer, ids))
    text = calls.decode(model.tokenizer, [*ids, next_id])
    return bool(word) and not text.endswith(REPLACEMENT) and find_word(text) == word
