"""Banned phrases: texts that a continuation never contains, whatever tokens they would be written with.

Before each choice, every token is forbidden that would complete a phrase in the decoded text. So a phrase never occurs,
and no text has to be taken back. Only the continuation counts: a phrase that begins in the prompt is allowed.

In a byte-level vocabulary the text is the bytes of its tokens, one after the other, and the tokens that complete a
phrase are found by these bytes alone. In any other vocabulary the text of a token depends on its neighbours. There the
same search, without regard to white space, finds the tokens that might complete a phrase, and decoding tells which do.
A run of byte tokens (`<0xE4>`) is decoded as a whole: while it is not valid UTF-8 it decodes to replacement characters,
and the byte that makes it valid may show a phrase that ends before this byte. So after a byte token all byte tokens are
candidates.
"""

from __future__ import annotations

import re
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from runtime._lock import Lock
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.detokenizer import CONTEXT_IDS, Detokenizer
from runtime.model.tokenizer.token_bytes import TokenBytes

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
_BETWEEN = b"\xff"  # a byte that no phrase has: UTF-8 never uses it
_MAX_KNOWN = 16  # lists of phrases that are remembered for a model
_MOST_BYTES = 4  # of a character
# Decoders that only add or remove white space around what a token stands for.
_SPACING = {"WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse"}


class TokenTexts:
    """What each id of a vocabulary stands for.

    is_exact: the text of ids is their bytes, one after the other. Otherwise these are texts without white space.
    is_known: false where a decoder may do anything to the text of a token; then nothing is known of any id.
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        token_bytes = TokenBytes(tokenizer)
        self.is_exact = token_bytes.is_byte_level
        self.is_known = self.is_exact or all(_only_spaces(step) for step in calls.decoder_steps(tokenizer))
        texts = token_bytes.of_texts(n_vocab)
        self.of_id = texts if self.is_exact else _bare_texts(tokenizer, texts, token_bytes.byte_ids)
        self.byte_ids: Ids = np.array(sorted(token_bytes.byte_ids & set(range(n_vocab))), np.int64)
        # In the order of their bytes: those with the same beginning stand together.
        order = sorted(range(n_vocab), key=self.of_id.__getitem__)
        self.order: Ids = np.array(order, np.int64)
        self._sorted = [self.of_id[id_] for id_ in order]
        self._joined = _BETWEEN.join(self.of_id)
        lengths = np.array([len(text) + 1 for text in self.of_id], np.int64)
        self._ends = np.cumsum(lengths)

    def write(self, text: str) -> bytes:
        """A text in the form of `of_id`."""
        return (text if self.is_exact else _bare(text)).encode()

    def beginning_with(self, start: bytes) -> slice:
        """Where in `order` the ids are whose text begins with these bytes."""
        low = bisect_left(self._sorted, start)
        high = bisect_right(self._sorted, start, lo=low, key=lambda text: text[: len(start)])
        return slice(low, high)

    def containing(self, part: bytes) -> Ids:
        """The ids whose text has these bytes in it."""
        places = [found.start() for found in re.finditer(re.escape(part), self._joined)]
        return np.unique(np.searchsorted(self._ends, places, side="right")).astype(np.int64)


class PhraseIndex:
    """Which ids may complete one of several phrases, by the text before them."""

    def __init__(self, texts: TokenTexts, phrases: Sequence[str]) -> None:
        self.texts = texts
        self.phrases = tuple(phrases)
        # By what is written of a phrase: where in `texts.order` the ids are that may write its rest.
        self._rests: dict[bytes, list[slice]] = {}
        # The ids that may write a whole phrase.
        self._whole = np.unique(np.concatenate([self._add(phrase) for phrase in phrases]))
        self.n_before = max(map(len, self._rests), default=0)  # bytes before an id that have a say

    def _add(self, phrase: str) -> Ids:
        texts = self.texts
        written = texts.write(phrase)
        if not written or not texts.is_known:
            # White space alone, which any token may bring along, or a decoder of which nothing is known.
            return texts.order
        for n in range(1, len(written)):
            self._rests.setdefault(written[:n], []).append(texts.beginning_with(written[n:]))
        if not texts.is_exact and phrase != phrase.rstrip():
            # Any token may bring along the white space at the end.
            self._rests.setdefault(written, []).append(slice(None))
        return texts.containing(written)

    def completing(self, before: bytes) -> Ids:
        """The ids that may complete a phrase after a text; all that do are among them."""
        found = [self._whole]
        for n in range(1, min(self.n_before, len(before)) + 1):
            found += [self.texts.order[place] for place in self._rests.get(before[-n:], ())]
        return np.unique(np.concatenate(found))


class BannedPhrases:
    """The phrases that the continuations of one prompt never contain."""

    def __init__(self, index: PhraseIndex, detokenizer: Detokenizer, prompt: Sequence[int], hidden: str = "") -> None:
        """`hidden`: the text at the beginning of the first new token that is the prompt's own, by token healing."""
        self._index = index
        self._detokenizer = detokenizer
        self._context = detokenizer.last_shown(prompt, detokenizer.n_context or CONTEXT_IDS)
        self._hidden = hidden
        self._n_hidden = len(index.texts.write(hidden))
        # Characters of the longest phrase, each written by one id at least, or by the ids of its bytes.
        self._n_window = _MOST_BYTES * max(map(len, index.phrases)) + detokenizer.n_context

    def restrict(self, logits: Logits, new_ids: Sequence[int]) -> Logits:
        """Logits [n_vocab] with every token at -inf that would complete a phrase after the ids generated so far."""
        ids = self.completing(new_ids)
        if not ids.size:
            return logits
        restricted = logits.copy()
        restricted[ids] = -np.inf
        return restricted

    def completing(self, new_ids: Sequence[int]) -> Ids:
        """The ids that would complete a phrase."""
        texts = self._index.texts
        first = self._find_first(new_ids)
        if not texts.is_exact and not self._context and first is None:
            # The first token of a text is decoded in a way of its own.
            return self._confirm(texts.order, new_ids)
        found = self._index.completing(self._written(new_ids, first))
        if texts.byte_ids.size and self._is_in_byte_run(new_ids):
            found = np.union1d(found, texts.byte_ids)
        return found if texts.is_exact and (new_ids or not self._hidden) else self._confirm(found, new_ids)

    def _is_in_byte_run(self, new_ids: Sequence[int]) -> bool:
        """Whether the text so far ends with a byte token."""
        last = self._detokenizer.last_shown(new_ids, 1) or self._context
        return bool(last) and last[-1] in self._detokenizer.byte_ids

    def _find_first(self, new_ids: Sequence[int]) -> int | None:
        """Where the first id stands that is part of the text."""
        return next((at for at, id_ in enumerate(new_ids) if self._detokenizer.shows(id_)), None)

    def _written(self, new_ids: Sequence[int], first: int | None) -> bytes:
        """The end of the text so far, as long as the search needs it."""
        texts = self._index.texts
        parts: list[bytes] = []
        n_left = self._index.n_before
        for at in range(len(new_ids) - 1, -1, -1):
            if n_left <= 0:
                break
            part = texts.of_id[new_ids[at]]
            if at == first and not texts.is_exact and not self._context:
                part = max(part, texts.write(self._detokenizer.decode([new_ids[at]])), key=len)
            parts.append(part if at else part[self._n_hidden :])
            n_left -= len(part)
        return b"".join(reversed(parts))

    def _confirm(self, ids: Ids, new_ids: Sequence[int]) -> Ids:
        """Those of some ids with which the decoded text has a phrase in it, in their order."""
        before = self._detokenizer.last_shown(new_ids, self._n_window)
        if len(before) < self._n_window:
            n_known = len(self._detokenizer.decode(self._context)) + len(self._hidden)
            before = [*self._context, *before]
        else:
            # The first ids are there for the text of the next ones.
            n_known = len(self._detokenizer.decode(before[: self._detokenizer.n_context]))
        return np.array([id_ for id_ in np.sort(ids).tolist() if self._has_phrase([*before, id_], n_known)], np.int64)

    def _has_phrase(self, ids: Sequence[int], n_known: int) -> bool:
        text = self._detokenizer.decode(ids)[n_known:]
        return any(phrase in text for phrase in self._index.phrases)


_LOCK = Lock()
_TEXTS: weakref.WeakKeyDictionary[Model, TokenTexts] = weakref.WeakKeyDictionary()
_INDEXES: weakref.WeakKeyDictionary[Model, dict[tuple[str, ...], PhraseIndex]] = weakref.WeakKeyDictionary()


def make_banned(model: Model, phrases: Sequence[str], prompt: Sequence[int], hidden: str = "") -> BannedPhrases | None:
    """What keeps these phrases out of the continuations of a prompt; None without phrases. See `BannedPhrases`."""
    if not phrases:
        return None
    return BannedPhrases(_index(model, tuple(phrases)), Detokenizer(model.tokenizer), prompt, hidden)


def _index(model: Model, phrases: tuple[str, ...]) -> PhraseIndex:
    with _LOCK:
        if model not in _TEXTS:
            _TEXTS[model] = TokenTexts(model.tokenizer, model.config.vocab_size)
        known = _INDEXES.setdefault(model, {})
        if phrases not in known:
            if len(known) >= _MAX_KNOWN:
                known.clear()
            known[phrases] = PhraseIndex(_TEXTS[model], phrases)
        return known[phrases]


def _only_spaces(step: dict[str, object]) -> bool:
    """Whether a decoder changes no more than the white space around the text of a token."""
    if step["type"] == "Strip":
        return not str(step["content"]).strip()
    if step["type"] == "Replace":
        return step["pattern"] == {"String": "▁"} and not str(step["content"]).strip()
    return step["type"] in _SPACING


def _bare_texts(tokenizer: Tokenizer, texts: Sequence[bytes], byte_ids: frozenset[int]) -> list[bytes]:
    """The text of every id in the middle of a text, without white space; the byte of a byte token."""
    detokenizer = Detokenizer(tokenizer)
    # Decoders treat the first token in a way of its own.
    first = next((id_ for id_ in range(len(texts)) if _bare(detokenizer.decode([id_]))), 0)
    n_first = len(_bare(detokenizer.decode([first])))
    return [
        texts[id_] if id_ in byte_ids else _bare(detokenizer.decode([first, id_]))[n_first:].encode()
        for id_ in range(len(texts))
    ]


def _bare(text: str) -> str:
    return "".join(text.split())
