"""Parts of a tokenizer.json: those that tokenizers writes are allowed, and what may harm is refused by name."""

from __future__ import annotations

import base64
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.implementations import (
    BertWordPieceTokenizer,
    ByteLevelBPETokenizer,
    CharBPETokenizer,
    SentencePieceBPETokenizer,
    SentencePieceUnigramTokenizer,
)
from transformers import BertTokenizerFast, GPT2TokenizerFast

from runtime.model.tokenizer.file import check
from runtime.model.tokenizer.parts import NORMALIZERS, TokenizerFileError
from tests.conftest import DEMO, shared_data
from tests.support.vocabularies import KINDS, byte_level

BASE: dict[str, Any] = json.loads(byte_level().to_str())
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def check_changed(**changes: Any) -> None:
    check(json.dumps(BASE | changes).encode())


# allowed -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_kind_of_vocabulary_is_allowed(make: Any) -> None:
    check(make().to_str().encode(), make().get_vocab_size())


def test_the_demo_and_openai_are_allowed() -> None:
    check((DEMO / "tokenizer.json").read_bytes(), 8192)
    check((shared_data("tokenizer") / "tokenizer.json").read_bytes(), 50257)


TRAINERS = [
    ByteLevelBPETokenizer,
    BertWordPieceTokenizer,
    CharBPETokenizer,
    SentencePieceBPETokenizer,
    SentencePieceUnigramTokenizer,
]


@pytest.mark.parametrize("kind", TRAINERS)
def test_what_tokenizers_trains_is_allowed(kind: Any) -> None:
    tokenizer = kind()
    tokenizer.train_from_iterator(["the cat sat on the mat, and 12 mice"] * 20, vocab_size=300, show_progress=False)
    check(tokenizer.to_str().encode(), 300)


@pytest.mark.parametrize("kind", [GPT2TokenizerFast, BertTokenizerFast])
def test_older_files_that_transformers_converts_are_allowed(kind: Any, tmp_path: Path) -> None:
    """GPT-2's vocab.json and merges.txt; the vocab.txt of a Chinese GPT-2."""
    demo = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in demo["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(demo["vocab"]), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "鼠", "年"]), encoding="utf-8"
    )
    tokenizer = kind.from_pretrained(tmp_path)
    check(tokenizer.backend_tokenizer.to_str().encode(), len(tokenizer))


COMPONENTS: dict[str, list[Any]] = {
    "normalizer": [
        normalizers.BertNormalizer(),
        normalizers.ByteLevel(),
        normalizers.Lowercase(),
        normalizers.NFC(),
        normalizers.NFD(),
        normalizers.NFKC(),
        normalizers.NFKD(),
        normalizers.Nmt(),
        normalizers.Prepend("▁"),
        normalizers.Replace(" ", "▁"),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Strip(),
        normalizers.StripAccents(),
        # as ALBERT has them
        normalizers.Sequence(
            [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
        ),
    ],
    "pre_tokenizer": [
        pre_tokenizers.BertPreTokenizer(),
        pre_tokenizers.ByteLevel(),
        pre_tokenizers.CharDelimiterSplit(" "),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        pre_tokenizers.Punctuation(),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(GPT4), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
        ),
        pre_tokenizers.UnicodeScripts(),
        pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(),
    ],
    "post_processor": [
        processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0)),
        processors.ByteLevel(),
        processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
        processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 0), ("[SEP]", 1)]),
        processors.TemplateProcessing("$A", None, []),
        processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])]),
    ],
    "decoder": [
        decoders.BPEDecoder(),
        decoders.ByteFallback(),
        decoders.ByteLevel(),
        decoders.Fuse(),
        decoders.Metaspace(),
        decoders.Replace("▁", " "),
        decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
        decoders.WordPiece(),
    ],
}


@pytest.mark.parametrize(
    ("section", "component"), [(section, one) for section, all_ in COMPONENTS.items() for one in all_], ids=str
)
def test_parts_are_allowed_as_tokenizers_writes_them(section: str, component: Any) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    setattr(tokenizer, section, component)
    check(tokenizer.to_str().encode(), 2)


MODELS = [
    models.BPE({"a": 0}, [], unk_token="a", continuing_subword_prefix="##", end_of_word_suffix="</w>"),
    models.WordPiece({"a": 0}, unk_token="a"),
    models.WordLevel({"a": 0}, unk_token="a"),
    models.Unigram([("a", 0.0), ("b", -1.5)], 0, True),
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_models_are_allowed_as_tokenizers_writes_them(model: Any) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.add_tokens([AddedToken("new", lstrip=True, rstrip=True, single_word=True, normalized=False)])
    check(tokenizer.to_str().encode(), 3)


def test_fields_of_older_versions_are_allowed() -> None:
    """GPT-2's own file has no type of its model; a Metaspace of before 0.19 has another set of fields."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True}
    model = {key: value for key, value in BASE["model"].items() if key != "type"}
    check_changed(model=model, pre_tokenizer=metaspace, decoder=metaspace)


# refused -------------------------------------------------------------------------------------------------------------


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def characters_map(header: int, trie: bytes, texts: bytes = b"") -> dict[str, Any]:
    table = base64.b64encode(struct.pack("<I", header) + trie + texts).decode()
    return {"type": "Precompiled", "precompiled_charsmap": table}


def template(**changes: Any) -> dict[str, Any]:
    sound = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"x": {"id": "x", "ids": [3], "tokens": ["x"]}},
    }
    return sound | changes


TEXT_A = {"Sequence": {"id": "A", "type_id": 0}}
PADDING = {
    "strategy": {"Fixed": 10**10},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "x",
}
NESTED: dict[str, Any] = {"type": "NFC"}
for _ in range(6):
    NESTED = sequence(NESTED)
WORD_PIECE = {"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "", "vocab": {"a": 0}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "doubling": (
        {"normalizer": sequence(*[replace("a", "aa")] * 11)},
        "normalizer may make a text 2,048 times as long",
    ),
    "many parts": ({"normalizer": sequence(*[{"type": "NFC"}] * 33)}, "normalizer has more than the 32 parts"),
    "nested": ({"normalizer": NESTED}, "is a Sequence inside 4 others, and 4 levels"),
    "long content": ({"normalizer": replace("a", "b" * 65)}, "normalizer.content is 'bbb.*at most 64 characters"),
    "empty pattern": ({"normalizer": replace("", "b")}, r"normalizer.pattern is .*a text that is not empty"),
    "long prefix": ({"normalizer": {"type": "Prepend", "prepend": "a" * 100}}, "normalizer.prepend is"),
    "short table": ({"normalizer": characters_map(400_000, b"\1" * 20)}, "has a trie of 400,000 bytes"),
    "table without a trie": ({"normalizer": characters_map(0, b"", b"ab\0")}, "has a trie of 0 bytes"),
    "table of no texts": ({"normalizer": characters_map(4, b"\1" * 4, b"\xff\xfe")}, "texts that are not UTF-8"),
    "table that grows": ({"normalizer": characters_map(4, b"\1" * 4, b"x" * 65)}, "replaces by a text of 65 bytes"),
    "table of no base64": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "base64 is allowed"),
    "backtracking": (
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "(a|aa)*$x"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        r"pre_tokenizer.pattern is the regular expression '\(a\|aa\)\*\$x'",
    ),
    "strip at the end": (
        {"decoder": {"type": "Strip", "content": " ", "start": 0, "stop": 1}},
        "decoder.stop is 1; a whole number from 0 to 0",
    ),
    "unknown part": ({"decoder": {"type": "CTC", "pad_token": "a"}}, "decoder.type is 'CTC'; BPEDecoder, "),
    "part of another section": ({"decoder": {"type": "NFC"}}, "decoder.type is 'NFC'"),
    "part without a type": ({"decoder": {"add_prefix_space": True}}, "decoder is .* an object with a type"),
    "unknown field": ({"decoder": {"type": "Fuse", "speed": 3}}, "decoder.'speed' is not a known field"),
    "unknown key": ({"plugin": "x"}, "'plugin' is not a known key"),
    "dropout beyond 1": ({"model": BASE["model"] | {"dropout": 2.0}}, "model.dropout is 2.0; null or a number from 0"),
    "unknown model": ({"model": {"type": "Neural", "vocab": {}}}, "model.type is 'Neural'; BPE, WordPiece, "),
    "long words": (
        {"model": WORD_PIECE | {"max_input_chars_per_word": 10**18}},
        "model.max_input_chars_per_word is 1000000000000000000; a whole number from 1 to 256",
    ),
    "negative id": ({"model": BASE["model"] | {"vocab": {"a": -1}}}, "model.vocab has an id below 0"),
    "id of 33 bits": ({"model": BASE["model"] | {"vocab": {"a": 2**32}}}, "model.vocab has an id below 0 or above"),
    "id that is true": ({"model": BASE["model"] | {"vocab": {"a": True}}}, "model.vocab has an id that is a bool"),
    "one id twice": ({"model": BASE["model"] | {"vocab": {"a": 1, "b": 1}}}, "model.vocab gives one id to two tokens"),
    "long token": ({"model": BASE["model"] | {"vocab": {"a" * 2000: 1}}}, "has a token of 2,000 characters"),
    "no vocabulary": ({"model": {"type": "BPE", "merges": []}}, "model.vocab is missing"),
    "score": ({"model": {"type": "Unigram", "vocab": [["a", 1e308]]}}, r"has the score 1e\+308 at 0"),
    "empty piece": ({"model": {"type": "Unigram", "vocab": [["", 0.0]]}}, r"model.vocab has \['', 0.0\] at 0"),
    "unk_id": (
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 1}},
        "model.unk_id is 1, and the vocabulary",
    ),
    "template without its token": ({"post_processor": template(special_tokens={})}, r"single\[0\] names 'x', which"),
    "template that repeats": (
        {"post_processor": template(single=[TEXT_A] * 2)},
        "post_processor.single has a text twice",
    ),
    "template without a text": ({"post_processor": template(single=[])}, "post_processor.single is not made of"),
    "template of many ids": (
        {"post_processor": template(special_tokens={"x": {"id": "x", "ids": [1] * 99, "tokens": ["x"] * 99}})},
        "has 99 ids and 99 tokens; as many, 1 to 32",
    ),
    "added token without content": ({"added_tokens": [{"id": 3}]}, r"added_tokens\[0\] is "),
    "added token that is empty": ({"added_tokens": [{"id": 3, "content": ""}]}, r"added_tokens\[0\].content is ''"),
    "large added tokens": (
        {"added_tokens": [{"id": at, "content": "x" * 1_000} for at in range(1_001)]},
        "added_tokens have 1,001,000 characters",
    ),
    "padding": ({"padding": PADDING}, "padding.strategy is 10000000000; a whole number from 0"),
    "truncation": ({"truncation": {"max_length": -1}}, "truncation.max_length is -1"),
    "control characters": ({"decoder": {"type": "\x1b[2J"}}, r"decoder.type is '\\x1b\[2J'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_may_harm_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerFileError, match=message) as error:
        check_changed(**changes)
    assert re.fullmatch("[ -~▁]+", str(error.value)), "one line that a terminal may show"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'"' + b"1" * 9000])
def test_what_is_no_json_object_is_no_tokenizer(content: bytes) -> None:
    with pytest.raises(TokenizerFileError, match=r"^is not a tokenizer: it is not"):
        check(content)


def test_a_key_that_stands_twice_is_refused() -> None:
    """One reader would take the first, another the last."""
    with pytest.raises(TokenizerFileError, match=r"the key 'model' stands twice in one object"):
        check(b'{"model": {}, "model": {}}')


def test_utf16_is_not_json_as_tokenizers_reads_it() -> None:
    with pytest.raises(TokenizerFileError, match="not JSON"):
        check(json.dumps(BASE).encode("utf-16"))


@pytest.mark.parametrize("name", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"])
def test_growth_is_what_unicode_makes_of_one_character(name: str) -> None:
    text = "\n".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    longest = max(map(len, getattr(normalizers, name)().normalize_str(text).split("\n")))
    assert longest == NORMALIZERS[name].growth({})


@pytest.mark.parametrize("name", ["ByteLevel", "BertNormalizer"])
def test_growth_covers_what_a_part_makes_of_one_character(name: str) -> None:
    normalizer = getattr(normalizers, name)()
    longest = max(len(normalizer.normalize_str(character)) for character in "aéİ日鼠한ΰ\U0001f642\u1f82")
    assert 1 < longest <= NORMALIZERS[name].growth({})


def test_albert_is_within_the_growth_that_is_allowed() -> None:
    """Its table replaces a character by 18 at most, of 33 bytes."""
    table = characters_map(4, b"\1" * 4, b"x" * 18 + b"\0")
    others = [{"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]
    check_changed(normalizer=sequence(replace("``", '"'), *others, table, replace("  ", " ")))
