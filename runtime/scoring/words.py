"""The words of a text, the tokens of each word, and the tokens that can follow the end of a word."""

from __future__ import annotations

import bisect
import re
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.token_bytes import TokenBytes
from runtime.tokenization.token_texts import TokenTexts, writes_metaspace

Span = tuple[int, int]  # begin and end, counted in characters
# Metaspace vocabularies write a space as this character.
_WORD = re.compile(r"\S+")


def split_words(text: str, words: Sequence[str] | None = None) -> list[Span]:
    """The spans of a text's words: what white space separates, or the words of a list.

    words: the words of the text in their order. White space before a word is skipped; a word may hold white space, and
        may follow another without any.
    Raises TypeError where `words` holds something else, and ValueError for the first word that is not in its place,
    and for text after the last word.

    >>> split_words("It isn't.")
    [(0, 2), (3, 9)]
    >>> split_words("It isn't.", ["It", "is", "n't", "."])
    [(0, 2), (3, 5), (5, 8), (8, 9)]
    """
    if words is None:
        return [match.span() for match in _WORD.finditer(text)]
    spans: list[Span] = []
    at = 0
    for number, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip():
            raise TypeError(f"word {number} is {word!r}; a text that is not blank is expected")
        at = _skip_space(text, at)
        if not text.startswith(word, at):
            raise ValueError(f"word {number} of the list is {word!r}, but {_what_follows(text, at)}")
        spans.append((at, at + len(word)))
        at += len(word)
    at = _skip_space(text, at)
    if at < len(text):
        raise ValueError(f"the list of words ends after {len(words)} words, but {_what_follows(text, at)}")
    return spans


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _what_follows(text: str, at: int) -> str:
    if at == len(text):
        return "the text has ended"
    rest = text[at : at + 24]
    return f"the text goes on with {rest!r} at character {at}"


def assign_tokens(text: str, tokens: Sequence[Span], words: Sequence[Span]) -> list[Span]:
    """The tokens of each word: index of the first, and after the last. A word of which no token is left has none.

    White space before a word belongs to that word, and after the last word to none.
    Raises ValueError for a token that is part of two words.
    """
    ends = [end for _, end in words]
    owners = [_owner(text, token, words, ends) for token in tokens]
    spans: list[Span] = []
    at = 0
    for word in range(len(words)):
        begin = at
        while at < len(owners) and owners[at] <= word:
            at += 1
        spans.append((begin, at))
    return spans


def _owner(text: str, token: Span, words: Sequence[Span], ends: Sequence[int]) -> int:
    """Index of the word that a token is part of, or that follows it; len(words) for one after the last word.

    ends: of the words.
    """
    begin, end = token
    piece = text[begin:end]
    without_space = piece.strip()
    if without_space:
        begin += len(piece) - len(piece.lstrip())
        end = begin + len(without_space)
    else:
        begin = end
    first = bisect.bisect_right(ends, begin)
    if first < len(words) and ends[first] < end:
        one, other = (text[slice(*words[at])] for at in (first, first + 1))
        raise ValueError(
            f"the token {piece!r} is part of two words, {one!r} and {other!r}; give them as one word in `words`"
        )
    return first


class Beginnings(NamedTuple):
    """The tokens of a vocabulary that cannot continue a word.

    mask: [n_vocab], those tokens and the end of text.
    hold_space: whether they begin with white space, and so hold the space before a word.
    is_space_alone: [n_vocab], the tokens that are white space and nothing else.
    """

    mask: NDArray[np.bool_]
    hold_space: bool
    is_space_alone: NDArray[np.bool_]


class Vocabulary(NamedTuple):
    """The tokens of a model.

    texts: of every token alone, by id, the space before a word included; `�` for bytes that are part of a character.
    beginnings: None where tokens do not tell that a word begins.
    """

    texts: dict[int, str]
    beginnings: Beginnings | None


_known: weakref.WeakKeyDictionary[Model, Vocabulary] = weakref.WeakKeyDictionary()


def vocabulary(model: Model) -> Vocabulary:
    """What the tokens of a model say of words; kept for the next call."""
    if model not in _known:
        texts = _token_texts(model.tokenizer) if model.has_tokenizer else {}
        _known[model] = Vocabulary(texts, _find_beginnings(model, texts) if model.has_tokenizer else None)
    return _known[model]


def find_spans(text: str, ids: Sequence[int], offsets: Sequence[Span], beginnings: Beginnings | None) -> list[Span]:
    """The characters that each token is part of: several tokens of one character have its span.

    Some tokenizers leave the space before a word out of the offsets of the token that holds it. Here it is included.
    """
    spans: list[Span] = []
    covered = 0
    for id_, span in zip(ids, offsets, strict=True):
        if beginnings and beginnings.hold_space and beginnings.mask[id_]:
            spans.append(_with_space(text, span, covered, is_space_alone=bool(beginnings.is_space_alone[id_])))
        else:
            spans.append(span)
        covered = max(covered, spans[-1][1])
    return spans


def _with_space(text: str, span: Span, covered: int, *, is_space_alone: bool) -> Span:
    """The span of a token that begins with white space, where earlier tokens cover the text up to `covered`."""
    begin, end = span
    if begin > covered and text[covered:begin].isspace():
        return covered, end
    if begin == covered and is_space_alone and not text[begin:end].isspace():
        # The tokenizer put this space before the text, which does not have it.
        return begin, begin
    return span


def _find_beginnings(model: Model, texts: dict[int, str]) -> Beginnings | None:
    """The tokens that begin a word, and the end of text.

    Byte-level and metaspace vocabularies: the tokens that begin with white space. WordPiece: the tokens without the
    mark of a continuation. In other vocabularies a token says itself that its word ends (`</w>`), or is a word.
    """
    tokenizer = model.tokenizer
    prefix = _continuation_prefix(tokenizer)
    if prefix is not None:
        special = {id_ for id_, token in calls.added_tokens(tokenizer).items() if token.special}
        begin = {id_ for id_, text in texts.items() if not text.startswith(prefix)} - special
    elif TokenBytes(tokenizer).is_byte_level or writes_metaspace(tokenizer):
        begin = {id_ for id_, text in texts.items() if text[:1].isspace()}
    else:
        return None
    alone = {id_ for id_, text in texts.items() if text.isspace()}
    n = model.config.vocab_size
    return Beginnings(_mask({*begin, *model.config.eos_token_ids}, n), prefix is None, _mask(alone, n))


def _mask(ids: set[int], n: int) -> NDArray[np.bool_]:
    mask = np.zeros(n, np.bool_)
    mask[[id_ for id_ in ids if 0 <= id_ < n]] = True
    return mask


def _continuation_prefix(tokenizer: Tokenizer) -> str | None:
    """`##` of WordPiece; None for other vocabularies."""
    for step in calls.decoder_steps(tokenizer):
        if step["type"] == "WordPiece":
            return str(step["prefix"])
    model = tokenizer.model
    return str(model.continuing_subword_prefix) if isinstance(model, WordPiece) else None


def _token_texts(tokenizer: Tokenizer) -> dict[int, str]:
    text_of = TokenTexts(tokenizer)
    return {id_: text_of(id_) for id_ in calls.vocabulary(tokenizer).values()}
