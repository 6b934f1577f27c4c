"""The text of single tokens, each by itself."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence

from tokenizers import Tokenizer

from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.token_bytes import TokenBytes

METASPACE = "▁"


class TokenTexts:
    """The texts of the tokens of one tokenizer, the space before a word included.

    Bytes that are part of a character are `�`. An id without a token is "".

    >>> texts = TokenTexts(Tokenizer.from_file("models/demo/tokenizer.json"))
    >>> [texts(id_) for id_ in texts.tokenizer.encode("Once upon").ids]
    ['Once', ' upon']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._bytes_of = TokenBytes(tokenizer)
        self._writes_metaspace = writes_metaspace(tokenizer)
        self._added = calls.added_tokens(tokenizer)
        self._known: dict[int, str] = {}

    def __call__(self, id_: int) -> str:
        """The text of one id."""
        if id_ not in self._known:
            self._known[id_] = self._text(id_)
        return self._known[id_]

    def _text(self, id_: int) -> str:
        found = self._bytes_of(id_)
        if found is not None:
            return found.decode("utf-8", "replace")
        token = calls.token_of(self.tokenizer, id_) or ""
        return token.replace(METASPACE, " ") if self._writes_metaspace and id_ not in self._added else token


_known: weakref.WeakKeyDictionary[Model, TokenTexts] = weakref.WeakKeyDictionary()


def token_texts(model: Model, ids: Sequence[int]) -> list[str]:
    """The text of each id by itself; none of a model without a tokenizer.

    >>> model = runtime.load("models/demo-int8")
    >>> token_texts(model, model.encode("Once upon a time"))
    ['Once', ' upon', ' a', ' time']
    """
    if not model.has_tokenizer:
        return []
    if model not in _known:
        _known[model] = TokenTexts(model.tokenizer)
    return list(map(_known[model], ids))


def writes_metaspace(tokenizer: Tokenizer) -> bool:
    """Whether the tokens write a space as `▁`."""
    return any(
        step["type"] == "Metaspace" or (step["type"] == "Replace" and METASPACE in json.dumps(step, ensure_ascii=False))
        for step in calls.decoder_steps(tokenizer)
    )
