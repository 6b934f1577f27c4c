"""Forms compiled for a model's vocabulary by llguidance, an extra that is loaded at the first form."""

from __future__ import annotations

import functools
import json
import re
import string
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from runtime._lock import Lock, importing
from runtime.errors import OptionError
from runtime.model.model import Model
from runtime.options import Form
from runtime.tokenization.token_bytes import TokenBytes

if TYPE_CHECKING:
    from llguidance import LLMatcher

Way = tuple[int, ...]  # ids that complete a form
Ways = dict[int, Way]  # by hash of the mask of what may come next
N_FORMS = 32  # compiled, kept for each model
_METACHARACTERS = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~]")
_TYPICAL = {bytes([byte]) for byte in b"\t\n a0A" + string.punctuation.encode()}  # what ends things, and content
_LIKE_JSON_DUMPS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar(NamedTuple):
    """A form, compiled."""

    matcher: LLMatcher  # at the beginning: copied, never advanced
    ways: dict[tuple[int, bytes], Ways]  # from the beginning, by how many ids there may be and which: for rows alike


class Vocabulary:
    """A model's tokens as bytes, and the grammars made of them lately.

    Of one byte that is ASCII: `is_ascii`; of those, the few that stand for all at first in a search: `is_typical`.
    """

    def __init__(self, model: Model) -> None:
        """Takes about half a second for GPT-2's 50,257 tokens.

        Raises ImportError without the extra; ValueError for a tokenizer that is not byte-level BPE.
        """
        llguidance, n_vocab = _import_llguidance(), model.config.vocab_size
        self.tokens = _token_bytes(model.tokenizer, n_vocab)  # b"" for those that are no text
        self.lengths = np.array([len(token) for token in self.tokens])  # [n_vocab], as the next two
        self.is_ascii = np.array([len(token) == 1 and token.isascii() for token in self.tokens])
        self.is_typical = np.array([token in _TYPICAL for token in self.tokens])
        # an end of its own, after all others: which ids end a continuation is the row's to say
        wrapper = llguidance.TokenizerWrapper(_Tokens([*self.tokens, b"<end>"], model.tokenizer))
        self._tokenizer = llguidance.LLTokenizer(wrapper)
        self._llguidance = llguidance
        self.compile: Callable[[Form], Grammar] = functools.lru_cache(N_FORMS)(self._compile)

    def _compile(self, form: Form) -> Grammar:
        """Raises ValueError for what the engine does not take, in its words."""
        matcher = self._llguidance.LLMatcher(self._tokenizer, self._write(form), log_level=0)
        if matcher.is_error():
            told = f"{form.option} cannot be enforced: {_first_lines(matcher.get_error())}"
            raise OptionError(told, form.option)
        return Grammar(matcher, {})

    def _write(self, form: Form) -> str:
        """The form in llguidance's Lark; forced text is not tokenized ahead: the model chooses its tokens."""
        if form.option == "json_schema":
            rule = f"%json {json.dumps(_like_json_dumps(json.loads(str(form.value))))}"
        else:
            regex = form.value if isinstance(form.value, str) else "|".join(map(_escape, form.value))
            rule = f"/{self._llguidance.regex_to_lark(regex, '')}/"
        return f'%llguidance {{"no_forcing": true}}\nstart: {rule}'


_VOCABULARIES: weakref.WeakKeyDictionary[Model, Vocabulary] = weakref.WeakKeyDictionary()
_LOCK = Lock()


def vocabulary(model: Model) -> Vocabulary:
    """The model's, made at the first call."""
    with _LOCK:
        if model not in _VOCABULARIES:
            _VOCABULARIES[model] = Vocabulary(model)
        return _VOCABULARIES[model]


def _import_llguidance() -> ModuleType:
    try:
        with importing:
            import llguidance
    except ImportError as error:
        raise ImportError(
            f"choices, regex and json_schema need an extra: pip install 'gpt2-edge[constrain]' ({error})"
        ) from None
    return llguidance


class _Tokens:
    """What llguidance asks of a tokenizer; no token but the end is special, since special ones have no bytes."""

    def __init__(self, tokens: list[bytes], tokenizer: Tokenizer) -> None:
        self.tokens, self._tokenizer = tokens, tokenizer
        self.eos_token_id, self.bos_token_id = len(tokens) - 1, None
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _token_bytes(tokenizer: Tokenizer, n_vocab: int) -> list[bytes]:
    """The bytes of every id of a byte-level tokenizer, b"" for special tokens and for ids that it does not have."""
    bytes_of, added = TokenBytes(tokenizer), tokenizer.get_added_tokens_decoder()
    if not bytes_of.is_byte_level:
        raise ValueError(
            f"choices, regex and json_schema need byte-level BPE, as GPT-2's; this tokenizer has {tokenizer.decoder}"
        )
    special = {id_ for id_, token in added.items() if token.special}
    return [b"" if id_ in special else bytes_of(id_) or b"" for id_ in range(n_vocab)]


def _like_json_dumps(schema: dict[str, Any]) -> dict[str, Any]:
    own = schema.get("x-guidance", {})
    if not isinstance(own, dict):
        raise ValueError(f"json_schema has x-guidance {own!r}; an object is expected")
    return {**schema, "x-guidance": {**own, **_LIKE_JSON_DUMPS}}


def _escape(text: str) -> str:
    return _METACHARACTERS.sub(r"\\\g<0>", text)


def _first_lines(error: str) -> str:
    """llguidance's message on one line, without its listing of the grammar."""
    return " ".join(error.split("\n   1 | ")[0].removeprefix("at 2(8): ").split())
