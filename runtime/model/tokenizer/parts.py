"""Parts of a tokenizer.json that are allowed: their fields, and bounds that keep work linear in the length of a text.

tokenizers itself opens any file: normalizers that double a text 36 times, sizes beyond all memory, patterns that take
exponential time. A call into it cannot be interrupted, and an allocation that fails ends the process. So anything that
is not listed here raises an error before tokenizers reads the file.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from runtime.model.tokenizer.patterns import minimum_length

Check = Callable[[Any], None]
MAX_PARTS = 32
MAX_DEPTH = 4
# How many characters one character may become in a section: the product of the growths of its parts.
MAX_GROWTH = 1_000
MAX_SHORT_TEXT = 64
MAX_TOKEN = 1_024
MAX_ADDED_CHARACTERS = 1_000_000
# WordPiece tries all prefixes of the rest of a word, so a word takes up to the square of this many steps.
MAX_WORD = 256
# tokenizers' Strip decoder fails for tokens that are much shorter than what it strips.
MAX_STRIP = 64
_UINT32 = 2**32
_SHOWN = 60


class TokenizerFileError(ValueError):
    """A tokenizer.json that is not allowed. The message is the end of a sentence that begins with the file's name."""

    # Whether the reason is a part that is not on the list of allowed ones.
    is_part = False

    @classmethod
    def at(cls, place: str, reason: str) -> TokenizerFileError:
        """The error for a part that is not allowed. place: such as `normalizer.normalizers[2].content`."""
        error = cls(f"is refused: {place} {reason}; save it again with transformers' save_pretrained")
        error.is_part = True
        return error

    @classmethod
    def of_other_model(cls, place: str, reason: str) -> TokenizerFileError:
        """The error for ids that the model does not have."""
        return cls(f"is not of this model: {place} {reason}; copy the model folder again, or build it again")


def shown(value: object) -> str:
    """A value of the file on one line, cut to a length that fits into an error."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# fields --------------------------------------------------------------------------------------------------------------


def _expected(what: str, value: object) -> ValueError:
    return ValueError(f"is {shown(value)}; {what} is allowed")


def is_flag(value: object) -> None:
    """Raise ValueError for all but true and false."""
    if not isinstance(value, bool):
        raise _expected("true or false", value)


def is_flag_or_null(value: object) -> None:
    """Raise ValueError for all but true, false and null."""
    if value is not None:
        is_flag(value)


def is_text(value: object) -> None:
    """Raise ValueError for all but a short text."""
    if not isinstance(value, str) or len(value) > MAX_SHORT_TEXT:
        raise _expected(f"a text of at most {MAX_SHORT_TEXT} characters", value)


def is_text_or_null(value: object) -> None:
    """Raise ValueError for all but a short text and null."""
    if value is not None:
        is_text(value)


def is_token(value: object) -> None:
    """Raise ValueError for all but a text that may be a token."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TOKEN:
        raise _expected(f"a text of 1 to {MAX_TOKEN:,} characters", value)


def is_token_or_null(value: object) -> None:
    """Raise ValueError for all but a text that may be a token, and null."""
    if value is not None:
        is_token(value)


def is_character(value: object) -> None:
    """Raise ValueError for all but a text of one character."""
    if not isinstance(value, str) or len(value) != 1:
        raise _expected("one character", value)


def number(least: int, most: int) -> Check:
    """A check for whole numbers from `least` to `most`."""

    def check(value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _expected(f"a whole number from {least:,} to {most:,}", value)

    return check


def one_of(*allowed: str) -> Check:
    """A check for one of some texts."""

    def check(value: object) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise _expected(" or ".join(map(repr, allowed)), value)

    return check


is_id = number(0, _UINT32 - 1)


def is_dropout(value: object) -> None:
    """Raise ValueError for all but null and a probability. It is for training, and turned off once the file is open."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _expected("null or a number from 0 to 1", value)


def is_pattern(value: object) -> None:
    """Raise ValueError for all but `{"String": ...}`, and `{"Regex": ...}` with a pattern of linear time."""
    _least_length(value)


def _least_length(pattern: object) -> int:
    """Characters of the shortest match."""
    if not isinstance(pattern, dict) or len(pattern) != 1:
        raise _expected("an object with one key, String or Regex,", pattern)
    ((kind, text),) = pattern.items()
    if kind not in ("String", "Regex") or not isinstance(text, str) or not text:
        raise _expected("an object with one key, String or Regex, and a text that is not empty", pattern)
    if kind == "String":
        return len(text)
    try:
        return minimum_length(text)
    except ValueError as error:
        raise ValueError(
            f"is the regular expression {shown(text)}, which is not known to take linear time: {error}"
        ) from None


def is_characters_map(value: object) -> None:
    """Raise ValueError for all but the table of a sentencepiece model, in base64."""
    _longest_replacement(value)


def _longest_replacement(value: object) -> int:
    """Bytes of the longest text in a sentencepiece table: its header is the size of the trie, texts follow that."""
    try:
        table = base64.b64decode(value if isinstance(value, str) else b"", validate=True)
    except (binascii.Error, ValueError):
        raise _expected("base64", value) from None
    if len(table) < 4:
        raise _expected("a table with a header of 4 bytes", value)
    (n_trie,) = struct.unpack_from("<I", table)
    if n_trie == 0 or n_trie % 4 or n_trie > len(table) - 4:
        raise ValueError(f"has a trie of {n_trie:,} bytes, in a table of {len(table):,} bytes")
    texts = table[4 + n_trie :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"has texts that are not UTF-8: {error.reason}") from None
    longest = max(map(len, texts.split(b"\0")))
    if longest > MAX_SHORT_TEXT:
        raise ValueError(f"replaces by a text of {longest:,} bytes; {MAX_SHORT_TEXT} are allowed")
    return max(1, longest)


# parts ---------------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A kind of part: the checks of its fields, and how much a text may grow in it."""

    fields: Mapping[str, Check]
    # characters for one character
    growth: Callable[[dict[str, Any]], float] = lambda _: 1


def _grows(by: float) -> Callable[[dict[str, Any]], float]:
    return lambda _: by


def _replacement_growth(part: dict[str, Any]) -> float:
    return max(1, len(part.get("content", "")) / _least_length(part.get("pattern")))


_REPLACE = Part({"pattern": is_pattern, "content": is_text}, _replacement_growth)
_BEHAVIOR = one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_BYTE_LEVEL = {"add_prefix_space": is_flag, "trim_offsets": is_flag, "use_regex": is_flag}
_METASPACE = {
    "replacement": is_character,
    "str_rep": is_text,
    "add_prefix_space": is_flag,
    "prepend_scheme": one_of("first", "never", "always"),
    "split": is_flag,
}
# of a character in UTF-8, each of which becomes one letter
_BYTES = 4

NORMALIZERS: dict[str, Part] = {
    "BertNormalizer": Part(
        {
            "clean_text": is_flag,
            "handle_chinese_chars": is_flag,
            "strip_accents": is_flag_or_null,
            "lowercase": is_flag,
        },
        _grows(3 * 4 * 2),
    ),
    "ByteLevel": Part({}, _grows(_BYTES)),
    "Lowercase": Part({}, _grows(2)),
    # as measured over all of Unicode
    "NFC": Part({}, _grows(3)),
    "NFD": Part({}, _grows(4)),
    "NFKC": Part({}, _grows(18)),
    "NFKD": Part({}, _grows(18)),
    "Nmt": Part({}),
    "Precompiled": Part(
        {"precompiled_charsmap": is_characters_map}, lambda part: _longest_replacement(part.get("precompiled_charsmap"))
    ),
    "Prepend": Part({"prepend": is_text}),
    "Replace": _REPLACE,
    "Strip": Part({"strip_left": is_flag, "strip_right": is_flag}),
    "StripAccents": Part({}),
}
PRE_TOKENIZERS: dict[str, Part] = {
    "BertPreTokenizer": Part({}),
    "ByteLevel": Part(_BYTE_LEVEL, _grows(_BYTES)),
    "CharDelimiterSplit": Part({"delimiter": is_character}),
    "Digits": Part({"individual_digits": is_flag}),
    "FixedLength": Part({"length": number(1, _UINT32 - 1)}),
    # a mark before each piece
    "Metaspace": Part(_METASPACE, _grows(2)),
    "Punctuation": Part({"behavior": _BEHAVIOR}),
    "Split": Part({"pattern": is_pattern, "behavior": _BEHAVIOR, "invert": is_flag}),
    "UnicodeScripts": Part({}),
    "Whitespace": Part({}),
    "WhitespaceSplit": Part({}),
}
DECODERS: dict[str, Part] = {
    "BPEDecoder": Part({"suffix": is_token}, _grows(2)),
    # bytes that are no character become one of three bytes
    "ByteFallback": Part({}, _grows(3)),
    "ByteLevel": Part(_BYTE_LEVEL, _grows(3)),
    "Fuse": Part({}),
    "Metaspace": Part(_METASPACE),
    "Replace": _REPLACE,
    "Strip": Part({"content": is_character, "start": number(0, MAX_STRIP), "stop": number(0, 0)}),
    # a space before each token
    "WordPiece": Part({"prefix": is_text, "cleanup": is_flag}, _grows(2)),
}


def _is_token_and_id(value: object) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise _expected("a list of a token and its id", value)
    is_token(value[0])
    is_id(value[1])


PROCESSORS: dict[str, Part] = {
    "BertProcessing": Part({"sep": _is_token_and_id, "cls": _is_token_and_id}),
    "ByteLevel": Part(_BYTE_LEVEL),
    "RobertaProcessing": Part(
        {"sep": _is_token_and_id, "cls": _is_token_and_id, "trim_offsets": is_flag, "add_prefix_space": is_flag}
    ),
}


class Section(NamedTuple):
    """One of the four steps of a tokenizer."""

    name: str
    parts: Mapping[str, Part]
    sequence: str  # the key of a Sequence's list


SECTIONS = (
    Section("normalizer", NORMALIZERS, "normalizers"),
    Section("pre_tokenizer", PRE_TOKENIZERS, "pretokenizers"),
    Section("post_processor", PROCESSORS, "processors"),
    Section("decoder", DECODERS, "decoders"),
)


def check_section(section: Section, value: object) -> None:
    """Raise TokenizerFileError unless a section is null, or made of parts that are allowed, within their bounds."""
    if value is None:
        return
    growth: float = 1
    for n, (place, part) in enumerate(_leaves(section, value, section.name, 1), 1):
        if n > MAX_PARTS:
            raise TokenizerFileError.at(section.name, f"has more than the {MAX_PARTS} parts that are allowed")
        if section.name == "post_processor" and part["type"] == "TemplateProcessing":
            check_template(place, part)
            continue
        kind = section.parts.get(part["type"])
        if kind is None:
            raise TokenizerFileError.at(
                f"{place}.type", f"is {shown(part['type'])}; {', '.join(section.parts)} are allowed"
            )
        check_fields(place, part, {"type": is_text, **kind.fields})
        growth *= kind.growth(part)
    if growth > MAX_GROWTH:
        raise TokenizerFileError.at(
            section.name, f"may make a text {growth:,.0f} times as long, and {MAX_GROWTH:,} times is allowed"
        )


def check_fields(place: str, part: Mapping[str, Any], fields: Mapping[str, Check]) -> None:
    """Raise TokenizerFileError for a field that fails its check, and for one that is not known unless it is null."""
    for name, value in part.items():
        try:
            fields.get(name, is_unknown)(value)
        except ValueError as error:
            raise TokenizerFileError.at(f"{place}.{name if name in fields else shown(name)}", str(error)) from None


def is_unknown(value: object) -> None:
    """Raise ValueError for the value of an unknown field, unless it is null."""
    if value is not None:
        raise ValueError("is not a known field; leave it out")


def _leaves(section: Section, value: object, place: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of a section, those inside Sequences one by one, with their places."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise TokenizerFileError.at(place, f"is {shown(value)}; an object with a type is allowed")
    if value["type"] != "Sequence":
        yield place, value
        return
    if depth > MAX_DEPTH:
        raise TokenizerFileError.at(
            place, f"is a Sequence inside {depth - 1} others, and {MAX_DEPTH} levels are allowed"
        )
    check_fields(place, value, {"type": is_text, section.sequence: lambda _: None})
    parts = value.get(section.sequence)
    if not isinstance(parts, list):
        raise TokenizerFileError.at(f"{place}.{section.sequence}", f"is {shown(parts)}; a list is allowed")
    for index, part in enumerate(parts):
        yield from _leaves(section, part, f"{place}.{section.sequence}[{index}]", depth + 1)


# templates -----------------------------------------------------------------------------------------------------------


def check_template(place: str, part: dict[str, Any]) -> None:
    """Raise TokenizerFileError for a TemplateProcessing that tokenizers could not apply, or that repeats a text."""
    known = {"type": is_text, "single": _is_list, "pair": _is_list, "special_tokens": _is_object}
    check_fields(place, part, known)
    special: dict[str, Any] = part.get("special_tokens", {})
    for name, token in special.items():
        _check_special(f"{place}.special_tokens[{shown(name)}]", token)
    for side in ("single", "pair"):
        pieces = part.get(side, [])
        if len(pieces) > MAX_PARTS:
            raise TokenizerFileError.at(f"{place}.{side}", f"has {len(pieces):,} pieces, and {MAX_PARTS} are allowed")
        sequences = [_check_piece(f"{place}.{side}[{at}]", piece, special) for at, piece in enumerate(pieces)]
        if sequences.count("A") > 1 or sequences.count("B") > 1:
            raise TokenizerFileError.at(f"{place}.{side}", "has a text twice, and each once is allowed")
        if side == "single" and ("A" not in sequences or "B" in sequences):
            raise TokenizerFileError.at(f"{place}.{side}", "is not made of sequence A and special tokens")


def _is_list(value: object) -> None:
    if not isinstance(value, list):
        raise _expected("a list", value)


def _is_object(value: object) -> None:
    if not isinstance(value, dict):
        raise _expected("an object", value)


def _check_special(place: str, token: object) -> None:
    if not isinstance(token, dict):
        raise TokenizerFileError.at(place, f"is {shown(token)}; an object with id, ids and tokens is allowed")
    check_fields(place, token, {"id": is_token, "ids": _is_list, "tokens": _is_list})
    ids = token.get("ids", [])
    tokens = token.get("tokens", [])
    if len(ids) != len(tokens) or not 1 <= len(ids) <= MAX_PARTS:
        raise TokenizerFileError.at(
            place, f"has {len(ids):,} ids and {len(tokens):,} tokens; as many, 1 to {MAX_PARTS}, are allowed"
        )
    for id_, text in zip(ids, tokens, strict=True):
        try:
            _is_token_and_id([text, id_])
        except ValueError as error:
            raise TokenizerFileError.at(place, str(error)) from None


def _check_piece(place: str, piece: object, special: Mapping[str, Any]) -> str:
    """Check one piece of a template. Returns A or B for a text, "" for a special token."""
    if not isinstance(piece, dict) or len(piece) != 1:
        raise TokenizerFileError.at(place, f"is {shown(piece)}; an object with Sequence or SpecialToken is allowed")
    ((kind, value),) = piece.items()
    if kind not in ("Sequence", "SpecialToken") or not isinstance(value, dict):
        raise TokenizerFileError.at(place, f"is {shown(piece)}; an object with Sequence or SpecialToken is allowed")
    is_sequence = kind == "Sequence"
    check_fields(place, value, {"id": one_of("A", "B") if is_sequence else is_token, "type_id": is_id})
    name: str = value.get("id", "")
    if not is_sequence and name not in special:
        raise TokenizerFileError.at(place, f"names {shown(name)}, which special_tokens does not have")
    return name if is_sequence else ""


def ids_put_around(section: object) -> Iterator[int]:
    """Ids that a checked post_processor puts around texts."""
    if section is None:
        return
    for _, part in _leaves(SECTIONS[2], section, "post_processor", 1):
        for token in part.get("special_tokens", {}).values():
            yield from token["ids"]
        yield from (part[name][1] for name in ("sep", "cls") if name in part)


# models --------------------------------------------------------------------------------------------------------------


def _is_vocabulary(value: object) -> None:
    if not isinstance(value, dict):
        raise _expected("an object of ids by token", value)
    if wrong := set(map(type, value.values())) - {int}:
        raise ValueError(f"has an id that is a {min(kind.__name__ for kind in wrong)}; whole numbers are allowed")
    if value and (min(value.values()) < 0 or max(value.values()) >= _UINT32):
        raise ValueError("has an id below 0 or above the largest of 32 bits")
    if len(set(value.values())) != len(value):
        raise ValueError("gives one id to two tokens")
    _check_longest(value)


def _is_scored_vocabulary(value: object) -> None:
    if not isinstance(value, list):
        raise _expected("a list of tokens with their scores", value)
    for at, entry in enumerate(value):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or not entry[0]:
            raise ValueError(f"has {shown(entry)} at {at}; a list of a token and its score is allowed")
        score = entry[1]
        # a text of a million tokens still has a finite sum
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.fabs(score) <= 1e30:
            raise ValueError(f"has the score {shown(score)} at {at}; a number within 1e30 is allowed")
    _check_longest([entry[0] for entry in value])


def _check_longest(tokens: Any) -> None:
    longest = max(tokens, key=len, default="")
    if len(longest) > MAX_TOKEN:
        raise ValueError(f"has a token of {len(longest):,} characters, and {MAX_TOKEN:,} are allowed")


def _is_list_of_merges(value: object) -> None:
    if not isinstance(value, list) or set(map(type, value)) - {str, list}:
        raise _expected("a list of texts, or of lists of two texts,", value)


MODELS: dict[str, Mapping[str, Check]] = {
    "BPE": {
        "type": is_text,
        "dropout": is_dropout,
        "unk_token": is_token_or_null,
        "continuing_subword_prefix": is_text_or_null,
        "end_of_word_suffix": is_text_or_null,
        "fuse_unk": is_flag,
        "byte_fallback": is_flag,
        "ignore_merges": is_flag,
        "vocab": _is_vocabulary,
        "merges": _is_list_of_merges,
    },
    "WordPiece": {
        "type": is_text,
        "unk_token": is_token,
        "continuing_subword_prefix": is_text,
        "max_input_chars_per_word": number(1, MAX_WORD),
        "vocab": _is_vocabulary,
    },
    "WordLevel": {"type": is_text, "unk_token": is_token, "vocab": _is_vocabulary},
    "Unigram": {
        "type": is_text,
        "unk_id": lambda value: None if value is None else is_id(value),
        "byte_fallback": is_flag,
        "vocab": _is_scored_vocabulary,
    },
}


def check_model(value: object) -> dict[str, Any]:
    """A model with its type. Raises TokenizerFileError for one that is not allowed."""
    if not isinstance(value, dict):
        raise TokenizerFileError.at("model", f"is {shown(value)}; an object is allowed")
    # files of before the key was written: GPT-2's own has none
    kind = value.get("type", "BPE" if "merges" in value else None)
    if not isinstance(kind, str) or kind not in MODELS:
        raise TokenizerFileError.at("model.type", f"is {shown(kind)}; {', '.join(MODELS)} are allowed")
    check_fields("model", value, MODELS[kind])
    unk_id = value.get("unk_id")
    vocab = value.get("vocab")
    if vocab is None:
        raise TokenizerFileError.at("model.vocab", "is missing")
    if unk_id is not None and unk_id >= len(vocab):
        raise TokenizerFileError.at("model.unk_id", f"is {unk_id:,}, and the vocabulary has {len(vocab):,} tokens")
    return value


# added tokens, truncation and padding ---------------------------------------------------------------------------------

_ADDED = {
    "id": is_id,
    "content": is_token,
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), is_flag),
}


def check_added(tokens: object) -> None:
    """Raise TokenizerFileError for added tokens that are not allowed."""
    if tokens is None:
        return
    if not isinstance(tokens, list):
        raise TokenizerFileError.at("added_tokens", f"is {shown(tokens)}; a list is allowed")
    n_characters = 0
    for at, token in enumerate(tokens):
        place = f"added_tokens[{at}]"
        if not isinstance(token, dict) or not {"id", "content"} <= token.keys():
            raise TokenizerFileError.at(place, f"is {shown(token)}; an object with id and content is allowed")
        check_fields(place, token, _ADDED)
        n_characters += len(token["content"])
    if n_characters > MAX_ADDED_CHARACTERS:
        raise TokenizerFileError.at(
            "added_tokens", f"have {n_characters:,} characters, and {MAX_ADDED_CHARACTERS:,} are allowed"
        )


_LENGTH = number(0, 2**31 - 1)


def _is_length_or_null(value: object) -> None:
    if value is not None:
        _LENGTH(value)


def _is_strategy(value: object) -> None:
    if isinstance(value, dict) and value.keys() == {"Fixed"}:
        _LENGTH(value["Fixed"])
        return
    one_of("BatchLongest", "LongestFirst", "OnlyFirst", "OnlySecond")(value)


# both are settings of a call that was saved with the file, and turned off once it is open
CALL_SETTINGS: dict[str, Mapping[str, Check]] = {
    "truncation": {
        "direction": one_of("Left", "Right"),
        "max_length": _LENGTH,
        "strategy": _is_strategy,
        "stride": _LENGTH,
    },
    "padding": {
        "strategy": _is_strategy,
        "direction": one_of("Left", "Right"),
        "pad_to_multiple_of": _is_length_or_null,
        "pad_id": is_id,
        "pad_type_id": is_id,
        "pad_token": is_token,
    },
}


def check_call_settings(name: str, value: object) -> None:
    """Raise TokenizerFileError for `truncation` or `padding` that is not null and not within its bounds."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise TokenizerFileError.at(name, f"is {shown(value)}; null or an object is allowed")
    check_fields(name, value, CALL_SETTINGS[name])
