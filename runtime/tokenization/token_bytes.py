"""The bytes that tokens stand for, by the kind of vocabulary they are of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # a token of a byte-fallback vocabulary


class TokenBytes:
    """Bytes of single tokens: byte-level (GPT-2's letters for bytes), byte-fallback (`<0x41>`) and added tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        steps = decoder_steps(tokenizer)
        self._tokenizer = tokenizer
        self._added = {id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items()}
        self.is_byte_level = is_byte_level(steps)
        self.has_byte_fallback = any(step["type"] == "ByteFallback" for step in steps)

    def __call__(self, id_: int) -> bytes | None:
        """The bytes of an id; None where its text depends on its neighbours, or it has none."""
        token = self._tokenizer.id_to_token(id_)
        if token is None:
            return None
        if id_ in self._added:
            return str(self._added[id_]).encode()
        if self.is_byte_level:
            return bytes_of_letters(token)
        match = _BYTE.fullmatch(token) if self.has_byte_fallback else None
        return bytes([int(match[1], 16)]) if match else None


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The decoder's parts in their order, as tokenizer.json writes them; none where there is no decoder."""
    if tokenizer.decoder is None:
        return []
    return list(_flatten(json.loads(tokenizer.decoder.__getstate__())))


def _flatten(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _flatten(part)


def is_byte_level(steps: list[dict[str, Any]]) -> bool:
    """Whether the text of ids is their bytes in a row, and nothing else."""
    kinds = {step["type"] for step in steps}
    return "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}


def bytes_of_letters(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for; one with other letters stands for itself."""
    if all(letter in BYTE_OF_LETTER for letter in token):
        return bytes(BYTE_OF_LETTER[letter] for letter in token)
    return token.encode()


def _letters() -> dict[str, int]:
    """`bytes_to_unicode` of openai/gpt-2's encoder.py, turned round."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF_LETTER = _letters()
