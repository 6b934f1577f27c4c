"""GPT-2's letters for bytes, and the bytes that single tokens stand for."""

from __future__ import annotations

from tokenizers import Tokenizer

from runtime.model.tokenizer import calls


def _bytes_by_letter() -> dict[str, int]:
    """The inverse of `bytes_to_unicode` in openai/gpt-2's encoder.py: printable bytes stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF_LETTER = _bytes_by_letter()


class TokenBytes:
    """Bytes of the tokens of one tokenizer.

    Known for byte-level vocabularies, whose tokens are written in GPT-2's letters, for the byte tokens (`<0x41>`) of
    byte-fallback vocabularies, and for added tokens, which stand for their own text.

    >>> tokenizer = Tokenizer.from_file("models/demo/tokenizer.json")
    >>> TokenBytes(tokenizer)(tokenizer.token_to_id("Ġthe"))
    b' the'
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        kinds = {step["type"] for step in calls.decoder_steps(tokenizer)}
        self._tokenizer = tokenizer
        self._added = calls.added_tokens(tokenizer)
        # the text of ids is their bytes in a row, and nothing else
        self.is_byte_level = "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}
        # ids of the tokens that stand for one byte of a character that has no token of its own
        self.byte_ids = _byte_ids(tokenizer) if "ByteFallback" in kinds else frozenset[int]()

    def __call__(self, id_: int) -> bytes | None:
        """The bytes of an id; None where its text depends on its neighbours, and for an id without a token."""
        if id_ in self._added:
            return str(self._added[id_].content).encode()
        token = calls.token_of(self._tokenizer, id_)
        if token is None:
            return None
        if self.is_byte_level:
            return bytes_of_letters(token)
        if id_ in self.byte_ids:
            return bytes([int(token[3:5], 16)])
        return None

    def are_part_of_text(self, id_: int) -> bool:
        """Whether the text around a token of known bytes is made of bytes, so that a character may span tokens."""
        return self.is_byte_level or id_ in self.byte_ids

    def of_texts(self, n_vocab: int) -> list[bytes]:
        """The bytes of the ids 0 to n_vocab - 1, b"" for special tokens and for ids without known bytes."""
        special = {id_ for id_, token in self._added.items() if token.special}
        return [b"" if id_ in special else self(id_) or b"" for id_ in range(n_vocab)]


def bytes_of_letters(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for; one with other letters stands for itself.

    >>> bytes_of_letters("Ġcaf")
    b' caf'
    """
    if all(letter in BYTE_OF_LETTER for letter in token):
        return bytes(BYTE_OF_LETTER[letter] for letter in token)
    return token.encode()


def reads_as_bytes(content: str) -> bool:
    """Whether a byte-level decoder takes the letters of an added token for bytes, and makes another text of them.

    >>> reads_as_bytes("[niño]")
    True
    """
    return not content.isascii() and all(letter in BYTE_OF_LETTER for letter in content)


def _byte_ids(tokenizer: Tokenizer) -> frozenset[int]:
    names = [name for byte in range(256) for name in (f"<0x{byte:02X}>", f"<0x{byte:02x}>")]
    found = [calls.id_of(tokenizer, name) for name in names]
    return frozenset(id_ for id_ in found if id_ is not None)
