"""Regular expressions of a tokenizer.json: which are allowed, and that those take linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from runtime.model.tokenizer.patterns import PUBLISHED, minimum_length

# as transformers' converters and published files write them
SIMPLE = {
    r"\s+": 1,
    " {2,}": 2,
    "[0-9][0-9][0-9]": 3,
    r"\p{N}{1,3}": 1,
    "[\r\n]": 1,
    r"\s?\p{L}+": 1,
    r"\s?\p{P}+": 1,
    "[一-龥ࠀ-一가-퟿]+": 1,
    r"[^\r\n]+[\r\n]*": 1,
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+": 1,
    r"<\|startoftext\|>|\d+": 1,
}
REFUSED = [
    "(a|a|aa|aaa)*$x",
    "(?:a*)*(?:a*)*(?:a*)*b",
    "(x+x+)+y",
    r"(?<a>\g<a>?a)",
    "((a{1,1000}){1,1000}){1,1000}b",
    "a+b",
    "a*a*b",
    "a*b|c",
    "a{1,1000}b",
    "a{0,50}a{0,50}b",
    "a{5000}",
    "a{2,1}",
    "a{,5}",
    "a**",
    "a+?",
    "a?+",
    "a{2,3}+",
    "(a)",
    "(?i)a",
    "(?=a)b",
    r"\s+(?!\S)",
    "^a",
    "a$",
    r"\ba",
    r"\1",
    r"\k<a>",
    r"\K",
    r"\G",
    r"\R",
    r"\X",
    r"\A",
    "[a[b]]",
    "[a&&b]",
    "[[:alpha:]]",
    "[",
    "[]",
    "a\\",
    "",
    "a|",
    "a?",
    ".*",
    "a" * 3_000,
    "|".join(["a{1,40}b"] * 40),
]


@pytest.mark.parametrize(("pattern", "least"), SIMPLE.items())
def test_simple_patterns_are_allowed_with_their_shortest_match(pattern: str, least: int) -> None:
    assert minimum_length(pattern) == least


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_may_take_longer_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        minimum_length(pattern)


RUNS = ["a", "A", " ", "\n", "1", "'", "é", "\t ", "!", "A1", " \n", "'s", "日", "a\u0301", "ʰ"]


@pytest.mark.parametrize("pattern", sorted(PUBLISHED))
def test_published_patterns_take_linear_time(pattern: str) -> None:
    """Quadratic time would be minutes."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    assert minimum_length(pattern) == 1
    began = time.process_time()
    for run in RUNS:
        assert split.pre_tokenize_str(run * (200_000 // len(run)))
    assert time.process_time() - began < 60


ATOMS = st.sampled_from(["a", "b", " ", ".", r"\s", r"\w", "[ab]", "[^a]", r"\p{L}"])
COUNTS = st.sampled_from(["", "?", "*", "+", "{2}", "{1,3}", "{2,}", "{0,4}"])
PATTERNS = st.lists(
    st.lists(st.tuples(ATOMS, COUNTS).map("".join), min_size=1, max_size=5).map("".join), min_size=1, max_size=3
).map("|".join)


@settings(deadline=None, max_examples=150)
@given(pattern=PATTERNS)
def test_patterns_that_are_allowed_take_linear_time_and_match_no_less(pattern: str) -> None:
    """A run of 50,000 characters, matched from each place anew, would take minutes in quadratic time."""
    try:
        least = minimum_length(pattern)
    except ValueError:
        return
    for text in ("a" * 50_000, "ab" * 25_000, "a" * 49_999 + "!"):
        began = time.process_time()
        left = normalizers.Replace(Regex(pattern), "\0").normalize_str(text)
        assert time.process_time() - began < 5
        n_matches = left.count("\0")
        assert len(text) - (len(left) - n_matches) >= least * n_matches
