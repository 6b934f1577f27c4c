"""Prompts and options as a stranger would write them, for property tests and for the fuzzer."""

from __future__ import annotations

import functools
import math
import tempfile
import traceback
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

import runtime
from runtime import errors
from runtime.model.model import Model
from runtime.options import OVERFLOWS
from tests.support.damaging import build_small

RUNTIME = Path(runtime.__file__).parent
N_VOCAB, N_POSITIONS = 257, 128  # of the tiny model
EXPECTED = (
    TypeError,
    ValueError,
    FileNotFoundError,
    errors.ContextLengthError,
    errors.NoModelError,
    errors.NoTokenError,
    errors.OptionError,
)
Result = TypeVar("Result")


@functools.cache
def tiny_folder() -> Path:
    """A model folder of random weights whose ids are bytes."""
    return build_small(Path(tempfile.mkdtemp(prefix="gpt2-edge-")))


@functools.cache
def tiny() -> Model:
    return Model(tiny_folder(), threads=1)


def attempt(work: Callable[[], Result]) -> Result | None:
    """What it returns, or None after an error that the runtime raises itself, of a type that callers expect."""
    try:
        return work()
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        assert type(error) in EXPECTED, f"{type(error)} from {at}"
        assert RUNTIME in Path(at.filename).parents, f"{error!r} is not the runtime's: {at}"
        assert str(at.line).startswith("raise "), f"{error!r} happened to {at}"
        return None


def n_passes(most: int) -> Callable[[], bool]:
    """A cancel callback that lets so many passes happen: an option may ask for endless text."""
    passes = iter(range(most))
    return lambda: next(passes, None) is None


# texts -------------------------------------------------------------------------------------------------------------

_KNOWN = [
    "",
    "a",
    " ",
    "\0",
    "\ud800",
    "a\udcffb",
    "<|endoftext|>",
    "a<|endoftext|>b<|endo",
    "\u202eשלום \u202a مرحبا",
    "e" + "\u0301" * 40,
    "\ufeff\u200b\u2028\x85",
    "👩\u200d👩\u200d👧\u200d👦🇪🇸",
    "{text} {0} {} %s \\",
    "_ _ __",
    *(chr(plane << 16 | 0x41) for plane in range(17)),
]
_REPEATED = st.tuples(st.sampled_from(["a", " ", "7", "_", "\n", "中", "🙂", "<|endoftext|>"]), st.integers(1, 300))
_ANY = st.text(st.characters(), max_size=30)  # surrogates, too
TEXTS = st.one_of(st.sampled_from(_KNOWN), _ANY, _REPEATED.map(lambda pair: pair[0] * pair[1]))

# options -----------------------------------------------------------------------------------------------------------

_NUMBERS = [True, math.nan, math.inf, -math.inf, -1, 0, 1, 5e-324, 1e308, 2**31, 2**63, 2**64, 10**30, -(10**30)]
_OTHERS = [None, "", "3", "\ud800", b"a", [], {}, [None], ["a", 1], [[]], 1j, np.float32("nan"), np.int64(3), object()]
ODD = st.sampled_from([*_NUMBERS, *_OTHERS, Decimal("NaN")])
_IDS = st.sampled_from([-1, 0, 1, 65, N_VOCAB - 1, N_VOCAB, 2**63, 10**30])
_COUNTS = st.sampled_from([-1, 0, 1, 2, 3, N_POSITIONS, N_POSITIONS + 1, 2**31, 2**63 - 1, 2**63, 10**30])
_SHARES = st.sampled_from([-0.5, 0.0, 5e-324, 0.3, 0.999, 1.0, 1.0001, 2])
_PENALTIES = st.sampled_from([-1.7e308, -2.0, 0.0, 5e-324, 1e-40, 0.5, 1, 1.5, 1e39, 1.7e308, 10**400])
_PATTERNS = st.text("()[]{}|*+?.\\^$ab1,-", max_size=12)
_SCHEMAS = st.recursive(
    st.sampled_from([{}, {"type": "string"}, {"type": "integer", "minimum": 3}, {"enum": ["a", 1]}, {"type": 5}, True])
    | st.sampled_from(["{", "[1]", "{" * 300, {"$ref": "#"}, {"x-guidance": 3}, {"minimum": math.nan}, {"a": {1, 2}}]),
    lambda inner: (
        st.builds(lambda one: {"type": "object", "properties": {"a": one}, "required": ["a"]}, inner)
        | st.builds(lambda one: {"type": "array", "items": one, "maxItems": 2}, inner)
    ),
    max_leaves=3,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["max_new_tokens", "min_new_tokens", "top_k", "no_repeat_ngram_size", "lookup"], _COUNTS),
    **dict.fromkeys(["top_p", "min_p", "typical_p"], _SHARES),
    **dict.fromkeys(["repetition_penalty", "presence_penalty", "frequency_penalty"], _PENALTIES),
    **dict.fromkeys(["dry_multiplier", "dry_base"], _PENALTIES),
    "dry_allowed_length": _COUNTS,
    "dry_sequence_breakers": TEXTS | st.lists(TEXTS, max_size=3),
    "banned": TEXTS | st.lists(TEXTS, max_size=3),
    "temperature": st.sampled_from([0, 5e-324, 1e-30, 0.7, 1, 100.0, 1.7e308, -0.1, 10**400]),
    "seed": st.sampled_from([0, 1, 2**64 - 1, 2**64, -1]),
    "logit_bias": st.dictionaries(_IDS, _PENALTIES | st.sampled_from([math.inf, -math.inf, math.nan]), max_size=3),
    "suppress_ids": st.lists(_IDS, max_size=3) | st.just(range(N_VOCAB)),
    "stop_ids": st.lists(_IDS, max_size=3),
    "stop": TEXTS | st.lists(TEXTS, max_size=3),
    "choices": st.lists(TEXTS, max_size=3),
    "regex": _PATTERNS | TEXTS,
    "json_schema": _SCHEMAS | TEXTS,
    "overflow": st.sampled_from([*OVERFLOWS, "wrap"]),
    "pinned_tokens": _COUNTS,
    "special_tokens": st.booleans(),
    "token_healing": st.booleans(),
    "deadline": st.sampled_from([5e-324, 1e-9, 10, 1e308]),
    "tempature": st.just(1.0),
}
_ONE = st.sampled_from(sorted(VALUES)).flatmap(lambda name: st.tuples(st.just(name), VALUES[name] | ODD))
OPTIONS = st.lists(_ONE, max_size=4).map(dict) | st.lists(
    st.sampled_from(sorted(VALUES)).flatmap(lambda name: st.tuples(st.just(name), VALUES[name])), max_size=5
).map(dict)
