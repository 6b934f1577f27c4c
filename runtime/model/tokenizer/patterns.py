r"""Regular expressions that a tokenizer.json may have: those that match in linear time.

tokenizers matches with Oniguruma, which backtracks: `(a|aa)*b` takes exponential time on a run of `a`, and a call into
it cannot be interrupted. So a pattern is either one of the published ones in `PUBLISHED`, or of a form for which a
match attempt provably costs a bounded number of steps besides the text that it consumes (see `minimum_length`).
"""

from __future__ import annotations

import re

# A run of white space ends before the space that belongs to the next word.
_SPACES = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACES}"
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K_START = r"[^\r\n\p{L}\p{N}]?"

# Checked by hand: each attempt to match consumes what it scanned, or is followed by an alternative that does.
PUBLISHED = frozenset({
    # GPT-2, with its contractions in the two spellings of openai/gpt-2 and tiktoken
    rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}",
    rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}",
    # GPT-4 (cl100k) and Llama 3
    rf"(?i:{_CONTRACTIONS})|{_O200K_START}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}",
    # Qwen 2
    rf"(?i:{_CONTRACTIONS})|{_O200K_START}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}",
    # GPT-4o (o200k)
    rf"{_O200K_START}{_UPPER}*{_LOWER}+(?i:{_CONTRACTIONS})?|{_O200K_START}{_UPPER}+{_LOWER}*(?i:{_CONTRACTIONS})?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}",
    # DeepSeek V3
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_LINES}",
    # BLOOM
    " ?[^(\\s|[.,!?…。，、।۔،])]+",
})  # fmt: skip
MAX_LENGTH = 2_000
# The most steps of one attempt to match, besides the text that it consumes.
MAX_STEPS = 2_000

_ESCAPE = r"\\(?:[sSdDwWhHtnrfv]|[pP]\{\^?[A-Za-z_ ]{1,40}\}|x\{[0-9A-Fa-f]{1,6}\}|[^\w\s])"
# No class inside a class, and no && inside one: both are operators in Oniguruma.
_CLASS = rf"\[\^?(?:{_ESCAPE}|[^\[\]\\&])+\]"
_ATOM = rf"(?:{_ESCAPE}|{_CLASS}|\.|[^\\\[\]\(\)\{{\}}\*\+\?\|\^\$\.])"
_COUNT = r"[?*+]|\{(?P<least>\d{1,4})(?P<comma>,(?P<most>\d{1,4})?)?\}"
_ITEM = re.compile(rf"(?P<atom>{_ATOM})(?P<count>{_COUNT})?", re.DOTALL)
_SIMPLE_COUNTS: dict[str | None, tuple[int, int | None]] = {None: (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None)}
_Item = tuple[int, int | None]


def minimum_length(pattern: str) -> int:
    r"""The length of the shortest match of a pattern, in characters.

    Raises ValueError for a pattern that may need more than linear time, and for one that matches the empty text.

    Allowed besides the published patterns: alternatives, each a sequence of characters, escapes (`\s`, `\p{L}`) and
    classes with `?`, `*`, `+` or `{m,n}`, without groups and assertions. What follows an item that repeats without
    limit must be optional. Such an item then never gives anything back, and only the items before it are tried again.

    >>> minimum_length(" {2,}")
    2
    """
    if pattern in PUBLISHED:
        return 1
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"it has {len(pattern):,} characters, and at most {MAX_LENGTH:,} are allowed")
    least: list[int] = []
    steps = 0
    for items in _alternatives(pattern):
        least.append(sum(item[0] for item in items))
        steps += _steps(items)
    if steps > MAX_STEPS:
        raise ValueError(f"one attempt to match it may take {steps:,} steps, and at most {MAX_STEPS:,} are allowed")
    if min(least) == 0:
        raise ValueError("it matches the empty text")
    return min(least)


def _alternatives(pattern: str) -> list[list[_Item]]:
    """The items of each alternative: how often they repeat at least and at most, None for no limit."""
    alternatives: list[list[_Item]] = [[]]
    place = 0
    while place < len(pattern):
        if pattern[place] == "|":
            alternatives.append([])
            place += 1
            continue
        match = _ITEM.match(pattern, place)
        if match is None:
            raise ValueError(f"{pattern[place:][:20]!r} is neither a published pattern nor a simple one without groups")
        alternatives[-1].append(_repeats(match))
        place = match.end()
    return alternatives


def _repeats(match: re.Match[str]) -> _Item:
    if match["least"] is None:
        return _SIMPLE_COUNTS[match["count"]]
    least = int(match["least"])
    if match["comma"] is None:
        return least, least
    if match["most"] is None:
        return least, None
    most = int(match["most"])
    if most < least:
        raise ValueError(f"{match[0]!r} repeats at least {least} and at most {most} times")
    return least, most


def _steps(items: list[_Item]) -> int:
    """The most steps of an attempt, besides the text that it consumes. Raises ValueError if there is no limit."""
    choices = 1
    length = 1
    is_unlimited = False
    for least, most in items:
        if is_unlimited and least > 0:
            raise ValueError("an item that must match follows one that repeats without limit")
        if is_unlimited:
            continue
        is_unlimited = most is None
        length += least if most is None else most
        choices *= 1 if most is None else most - least + 1
    return choices * length
