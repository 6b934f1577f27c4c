"""Small tokenizers of the kinds that GPT-2 checkpoints of the world have, beside byte-level BPE."""

from __future__ import annotations

import string
from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.support.building import byte_tokenizer

LETTERS = string.ascii_lowercase


def model_of(tokenizer: Tokenizer) -> Any:
    """What `encode` asks of a Model: its tokenizer, for which written special tokens are text, and vocab_size."""
    tokenizer.encode_special_tokens = True
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    return SimpleNamespace(tokenizer=tokenizer, has_tokenizer=True, config=SimpleNamespace(vocab_size=vocab_size))


def byte_fallback() -> Tokenizer:
    """As sentencepiece makes it: letters, and bytes for all other characters."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, *"!."]
    vocab = {word: id_ for id_, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """Pieces with and without the mark of a word's beginning."""
    words = ["<unk>", "<s>", *LETTERS, *(f"▁{letter}" for letter in LETTERS), "▁", "▁the", "the", "é", "안", "▁안"]
    tokenizer = Tokenizer(models.BPE({word: id_ for id_, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<unk>"])
    return tokenizer


def word_pieces() -> Tokenizer:
    """BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "鼠", ".", ",", "'"]
    tokenizer = Tokenizer(models.WordPiece({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


def word_endings() -> Tokenizer:
    """The first GPT's: a mark at the end of a word."""
    words = ["<unk>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokenizer = Tokenizer(
        models.BPE({word: id_ for id_, word in enumerate(words)}, [], unk_token="<unk>", end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


def chess_moves() -> Tokenizer:
    """Words alone, none of them for unknown ones, and no decoder."""
    words = ["<|endoftext|>", "e2e4", "e7e5", "g1f3", "b8c6", "f1b5"]
    vocab = {word: id_ for id_, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))  # which it does not have
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def proteins() -> Tokenizer:
    """Byte-level BPE of residues and line ends; other characters are dropped."""
    words = ["<|endoftext|>", "Ċ", *"ACDEFGHIKLMNPQRSTVWY", "AL", "LE", "GA"]
    vocab = {word: id_ for id_, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, [("A", "L"), ("L", "E"), ("G", "A")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def byte_level() -> Tokenizer:
    """Bytes, special tokens that take white space, and added tokens that look like bytes."""
    tokenizer = byte_tokenizer(257)
    tokenizer.add_special_tokens(
        [AddedToken("<|user|>", special=True, rstrip=True), AddedToken("<|end|>", special=True, lstrip=True)]
    )
    tokenizer.add_tokens(["[niño]", "special token", "日本", "Ġgap", AddedToken("Word", single_word=True)])
    return tokenizer


KINDS = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "metaspace": metaspace,
    "word pieces": word_pieces,
    "word endings": word_endings,
    "words": chess_moves,
    "residues": proteins,
}
