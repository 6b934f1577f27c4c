"""Ids to text: all at once, or in pieces as the ids come.

The text of ids is what the tokenizer decodes them to, without special tokens. There is one exception, which
transformers' own `GPT2Tokenizer` makes too: an added token of a byte-level vocabulary is its own text. tokenizers'
decoder takes the letters of `[niño]` for bytes and gives another text.

Pieces come from tokenizers' `DecodeStream`, with what it holds back at the end added. tokenizers 0.21 to 0.23 have
it; the ids that come before are given one by one, since only 0.22 and later take them at once. A window of our own over
the latest ids takes its place where `DecodeStream` gives another text than the decoding of all ids:
- Byte-fallback vocabularies (`<0xE4>`). A run of byte tokens that is not valid UTF-8 decodes to replacement characters
  from its first byte on, and `DecodeStream` has shown its first characters by then, or raises "Invalid prefix".
- Decoders that strip white space from the beginning of a text: `DecodeStream` also strips it from its window.
- Added tokens that are their own text, as above.
- A context that ends inside a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import tokenizers
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from runtime.model.tokenizer import calls
from runtime.model.tokenizer.token_bytes import TokenBytes, reads_as_bytes

# What bytes that are not a character decode to.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# In tokenizers 0.21 `DecodeStream` panics at the first id of a text.
HAS_DECODE_STREAM = tuple(map(int, tokenizers.__version__.split(".")[:2])) >= (0, 22)
# Enough for decoders that look at the neighbours of a token, and for the bytes of any character
CONTEXT_IDS = 4


class Detokenizer:
    """Decodes the ids of one tokenizer.

    >>> tokenizer = Tokenizer.from_file("models/demo/tokenizer.json")
    >>> Detokenizer(tokenizer).decode(tokenizer.encode("Once upon a time").ids)
    'Once upon a time'
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        """`skip_special_tokens`: leave them out of the text; false writes them out."""
        added = calls.added_tokens(tokenizer)
        token_bytes = TokenBytes(tokenizer)
        self.tokenizer = tokenizer
        self.skips_special_tokens = skip_special_tokens
        self.byte_ids = token_bytes.byte_ids
        # characters that the decoder strips from the beginning of a text
        self.n_stripped = sum(step["start"] for step in calls.decoder_steps(tokenizer) if step["type"] == "Strip")
        # How many ids before have a say in the text of the next. A window begins with as many, and with more where
        # a decoder strips white space. Whole characters of a byte-level vocabulary do not depend on their neighbours.
        self.n_context = 0 if token_bytes.is_byte_level else CONTEXT_IDS + self.n_stripped
        self._special = {id_: token.content for id_, token in added.items() if token.special}
        self._verbatim = {
            id_: token.content
            for id_, token in added.items()
            if token_bytes.is_byte_level and not self._hides(id_) and reads_as_bytes(token.content)
        }

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; those that the tokenizer does not have are left out."""
        if not self._verbatim or self._verbatim.keys().isdisjoint(ids):
            return self._decode(ids)
        parts: list[str] = []
        begin = 0
        for at, id_ in enumerate(ids):
            if id_ in self._verbatim:
                parts += [self._decode(ids[begin:at]), self._verbatim[id_]]
                begin = at + 1
        return "".join([*parts, self._decode(ids[begin:])])

    def shows(self, id_: int) -> bool:
        """Whether an id is part of the text: special tokens that are left out are not, nor are unknown ids."""
        return not self._hides(id_) and calls.token_of(self.tokenizer, id_) is not None

    def hidden_text(self, id_: int) -> str:
        """What a special token that is left out is written as; "" for every other id."""
        return self._special.get(id_, "") if self.skips_special_tokens else ""

    def last_shown(self, ids: Sequence[int], n: int) -> list[int]:
        """The last n of the ids that are part of the text, and all of a run of byte tokens that would be cut."""
        last: list[int] = []
        for id_ in reversed(ids):
            if not self.shows(id_):
                continue
            is_inside_run = bool(last) and {last[-1], id_} <= self.byte_ids
            if len(last) >= n and not is_inside_run:
                break
            last.append(id_)
        return last[::-1]

    def is_streamed_by_tokenizers(self, context: Sequence[int]) -> bool:
        """Whether `DecodeStream` gives the text of all ids after these; see above."""
        if not HAS_DECODE_STREAM or self.byte_ids or self.n_stripped or self._verbatim:
            return False
        return not self.decode(self.last_shown(context, CONTEXT_IDS)).endswith(REPLACEMENT)

    def _hides(self, id_: int) -> bool:
        return self.skips_special_tokens and id_ in self._special

    def _decode(self, ids: Sequence[int]) -> str:
        return calls.decode(self.tokenizer, ids, skip_special_tokens=self.skips_special_tokens)


class PieceDecoder:
    """Text of ids as they come. No piece ends inside a character: what is unfinished waits for its other bytes.

    Joined, the pieces and what `flush` returns are what follows the text of the context in the text of all ids. So a
    run of byte tokens (`<0xE4>`) is shown when it ends: an invalid one decodes to other text from its first byte on.

    >>> tokenizer = Tokenizer.from_file("models/demo/tokenizer.json")
    >>> decoder = PieceDecoder(tokenizer)
    >>> [decoder.push(id_) for id_ in tokenizer.encode("Once upon").ids]
    ['Once', ' upon']
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        """`context`: the ids before the first, for decoders that put a space between words."""
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        is_streamed = self._detokenizer.is_streamed_by_tokenizers(context)
        self._pieces: _Pieces = (_StreamedPieces if is_streamed else _WindowPieces)(self._detokenizer, context)

    def push(self, id_: int) -> str:
        """The text that this id completes, "" while a character is unfinished."""
        return self._pieces.push(id_) if self._detokenizer.shows(id_) else ""

    def flush(self) -> str:
        """What is left: bytes that never became a character, as the tokenizer shows them."""
        return self._pieces.flush()

    def hidden_text(self, id_: int) -> str:
        """See `Detokenizer.hidden_text`."""
        return self._detokenizer.hidden_text(id_)


class _Pieces(Protocol):
    """How pieces are made of ids that are part of the text."""

    def push(self, id_: int) -> str: ...

    def flush(self) -> str: ...


class _StreamedPieces:
    """tokenizers' `DecodeStream`, and what it never shows."""

    def __init__(self, detokenizer: Detokenizer, context: Sequence[int]) -> None:
        self._detokenizer = detokenizer
        self._begin(context)

    def push(self, id_: int) -> str:
        self._ids.append(id_)
        piece = calls.stream(self._detokenizer.tokenizer, self._stream, id_)
        self._n_shown += len(piece)
        return piece

    def flush(self) -> str:
        piece = self._detokenizer.decode(self._ids)[self._n_shown :]
        self._begin(self._ids)
        return piece

    def _begin(self, context: Sequence[int]) -> None:
        self._stream = DecodeStream(skip_special_tokens=self._detokenizer.skips_special_tokens)
        self._ids = self._detokenizer.last_shown(context, self._detokenizer.n_context)
        for id_ in self._ids:
            calls.stream(self._detokenizer.tokenizer, self._stream, id_)
        self._n_shown = len(self._detokenizer.decode(self._ids))


class _WindowPieces:
    """A window over the latest ids, which begins with those that have a say in the text of the next."""

    def __init__(self, detokenizer: Detokenizer, context: Sequence[int]) -> None:
        self._detokenizer = detokenizer
        self._begin(context, detokenizer.n_context or CONTEXT_IDS)

    def push(self, id_: int) -> str:
        self._ids.append(id_)
        if id_ in self._detokenizer.byte_ids:
            return ""
        text = self._detokenizer.decode(self._ids)
        return "" if text.endswith(REPLACEMENT) else self._show(text)

    def flush(self) -> str:
        return self._show(self._detokenizer.decode(self._ids))

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._begin(self._ids, self._detokenizer.n_context)
        return piece

    def _begin(self, ids: Sequence[int], n_context: int) -> None:
        self._ids = self._detokenizer.last_shown(ids, n_context)
        self._shown = self._detokenizer.decode(self._ids)
