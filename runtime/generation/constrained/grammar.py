"""Structured output (choices, regex, json_schema) compiled for a model's vocabulary by llguidance.

llguidance is an extra: it is imported when the first form is compiled.
"""

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
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.token_bytes import TokenBytes
from runtime.options import Form

if TYPE_CHECKING:
    from llguidance import LLMatcher

# ids that complete a form
Way = tuple[int, ...]
# such ids by the hash of the mask of the tokens that may come next
Ways = dict[int, Way]
# compiled forms that are kept for each model
N_FORMS = 32
_METACHARACTERS = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~]")
# tokens that end a part of a form, and one of each kind of character inside one
_TYPICAL = {bytes([byte]) for byte in b"\t\n a0A" + string.punctuation.encode()}
_LIKE_JSON_DUMPS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar(NamedTuple):
    """A compiled form."""

    # at the beginning of the form: it is copied, never advanced
    matcher: LLMatcher
    # Ways from the beginning, by how many ids a continuation may have and which of them: rows with the same limits
    # share them.
    ways: dict[tuple[int, bytes], Ways]


class Vocabulary:
    """A model's tokens as bytes, and the forms that were compiled for them lately.

    `is_ascii` marks the tokens of one byte that is ASCII. `is_typical` marks the few of them that a search tries first,
    in place of all.
    """

    def __init__(self, model: Model) -> None:
        """Takes about half a second for GPT-2's 50,257 tokens.

        Raises ImportError without the extra; ValueError for a tokenizer that is not byte-level BPE.
        """
        llguidance = _import_llguidance()
        token_bytes = TokenBytes(model.tokenizer)
        if not token_bytes.is_byte_level:
            raise ValueError(
                "choices, regex and json_schema need byte-level BPE, as GPT-2's; this tokenizer has "
                f"{model.tokenizer.decoder}"
            )
        # b"" for those that are not text
        self.tokens = token_bytes.of_texts(model.config.vocab_size)
        self.lengths = np.array([len(token) for token in self.tokens])  # [n_vocab]
        self.is_ascii = np.array([len(token) == 1 and token.isascii() for token in self.tokens])  # [n_vocab]
        self.is_typical = np.array([token in _TYPICAL for token in self.tokens])  # [n_vocab]
        # llguidance gets an end of its own, after all tokens: a row decides which ids end its continuation.
        wrapper = llguidance.TokenizerWrapper(_Tokens([*self.tokens, b"<end>"], model.tokenizer))
        self._tokenizer = llguidance.LLTokenizer(wrapper)
        self._llguidance = llguidance
        self.compile: Callable[[Form], Grammar] = functools.lru_cache(N_FORMS)(self._compile)

    def _compile(self, form: Form) -> Grammar:
        """Raises ValueError, with llguidance's reason, for a form that it does not take."""
        matcher = self._llguidance.LLMatcher(self._tokenizer, self._write(form), log_level=0)
        if matcher.is_error():
            told = f"{form.option} cannot be enforced: {_first_lines(matcher.get_error())}"
            raise OptionError(told, form.option)
        return Grammar(matcher, {})

    def _write(self, form: Form) -> str:
        """The form in llguidance's Lark. `no_forcing`: the model chooses the tokens of text that the form forces."""
        if form.option == "json_schema":
            rule = f"%json {json.dumps(_like_json_dumps(json.loads(str(form.value))))}"
        else:
            regex = form.value if isinstance(form.value, str) else "|".join(map(_escape, form.value))
            rule = f"/{self._llguidance.regex_to_lark(regex, '')}/"
        return f'%llguidance {{"no_forcing": true}}\nstart: {rule}'


_VOCABULARIES: weakref.WeakKeyDictionary[Model, Vocabulary] = weakref.WeakKeyDictionary()
_LOCK = Lock()


def vocabulary(model: Model) -> Vocabulary:
    """The Vocabulary of a model, made at the first call. Raises as `Vocabulary` does."""
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
    """What llguidance asks of a tokenizer. Only the end is special: other special tokens have no bytes."""

    def __init__(self, tokens: list[bytes], tokenizer: Tokenizer) -> None:
        self.tokens = tokens
        self._tokenizer = tokenizer
        self.eos_token_id = len(tokens) - 1
        self.bos_token_id = None
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str) -> list[int]:
        return list(calls.encode(self._tokenizer, text, whole=False).ids)


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
