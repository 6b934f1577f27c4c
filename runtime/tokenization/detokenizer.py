"""Ids to text: all at once, or in pieces as they come.

The text of ids is what the tokenizer decodes them to, special tokens left out. There is one exception, which
transformers' own `GPT2Tokenizer` makes too: an added token of a byte-level vocabulary is its own text. tokenizers'
decoder takes the letters of `[niño]` for bytes and gives another text.

`tokenizers.decoders.DecodeStream` is not used. It shows the first characters of a run of byte tokens, although an
unfinished run decodes to other text as a whole; it has no end, so an unfinished character is lost; and before
tokenizers 0.22 it takes no ids that come before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from runtime.tokenization.token_bytes import BYTE_OF_LETTER, TokenBytes, decoder_steps

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character decode to
CONTEXT_IDS = 4  # enough for a decoder that looks at its neighbours


class Detokenizer:
    """Decodes the ids of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skips = tokenizer, skip_special_tokens
        added = tokenizer.get_added_tokens_decoder()
        bytes_of, steps = TokenBytes(tokenizer), decoder_steps(tokenizer)
        self._special = {id_: token.content for id_, token in added.items() if token.special}
        self.is_byte_level = bytes_of.is_byte_level
        # how many ids before have a say in the text of the next: decoders strip white space from the beginning of a
        # text, and would from that of a window; whole characters of a byte-level vocabulary do not depend on it
        n_stripped = sum(step["start"] for step in steps if step["type"] == "Strip")
        self.n_context = 0 if self.is_byte_level else CONTEXT_IDS + n_stripped
        self._verbatim = {
            id_: token.content
            for id_, token in added.items()
            if self.is_byte_level and not (skip_special_tokens and token.special) and _reads_as_bytes(token.content)
        }
        self.byte_ids = _byte_ids(tokenizer) if bytes_of.has_byte_fallback else frozenset()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; those that the tokenizer does not have are left out."""
        if not self._verbatim or self._verbatim.keys().isdisjoint(ids):
            return self._decode(ids)
        parts, begin = [], 0
        for at, id_ in enumerate(ids):
            if id_ in self._verbatim:
                parts += [self._decode(ids[begin:at]), self._verbatim[id_]]
                begin = at + 1
        return "".join([*parts, self._decode(ids[begin:])])

    def shows(self, id_: int) -> bool:
        """Whether an id is part of the text: special tokens that are left out are not, nor are unknown ids."""
        return not (self._skips and id_ in self._special) and self._tokenizer.id_to_token(id_) is not None

    def hidden_text(self, id_: int) -> str:
        """What a special token that is left out is written as; "" for every other id."""
        return self._special.get(id_, "") if self._skips else ""

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skips)
        return text


class PieceDecoder:
    """Text of ids as they come. No piece ends inside a character: what is unfinished waits for its other bytes.

    Joined, the pieces and what `flush` returns are what follows the text of the context in the text of all ids. So a
    run of byte tokens (`<0xE4>`) is shown when it ends: an invalid one decodes to other text from its first byte on.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        """`context`: the ids before the first, for decoders that put a space between words."""
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._shown = ""
        self._settle(context, self._detokenizer.n_context or CONTEXT_IDS)

    def push(self, id_: int) -> str:
        """The text that this id completes, "" while a character is unfinished."""
        if not self._detokenizer.shows(id_):
            return ""
        self._ids.append(id_)
        if id_ in self._detokenizer.byte_ids:
            return ""
        text = self._detokenizer.decode(self._ids)
        return "" if text.endswith(REPLACEMENT) else self._show(text)

    def flush(self) -> str:
        """What is left: bytes that never became a character, as the tokenizer shows them."""
        return self._show(self._detokenizer.decode(self._ids))

    def hidden_text(self, id_: int) -> str:
        """See `Detokenizer.hidden_text`."""
        return self._detokenizer.hidden_text(id_)

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._settle(self._ids, self._detokenizer.n_context)
        return piece

    def _settle(self, ids: Sequence[int], n_context: int) -> None:
        """Begin a window over the latest ids, and not inside a run of byte tokens."""
        window: list[int] = []
        for id_ in reversed(ids):
            if not self._detokenizer.shows(id_):
                continue
            inside = window and {window[-1], id_} <= self._detokenizer.byte_ids
            if len(window) >= n_context and not inside:
                break
            window.append(id_)
        self._ids = window[::-1]
        self._shown = self._detokenizer.decode(self._ids)


def _reads_as_bytes(content: str) -> bool:
    """Whether a byte-level decoder makes another text of an added token."""
    return not content.isascii() and all(letter in BYTE_OF_LETTER for letter in content)


def _byte_ids(tokenizer: Tokenizer) -> frozenset[int]:
    names = [name for byte in range(256) for name in (f"<0x{byte:02X}>", f"<0x{byte:02x}>")]
    found: Iterable[int | None] = map(tokenizer.token_to_id, names)
    return frozenset(id_ for id_ in found if id_ is not None)
