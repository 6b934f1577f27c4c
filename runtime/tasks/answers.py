"""Functions that find the answer in what a model wrote."""

from __future__ import annotations

import re

# The end of a sentence: an end mark, with the quotes or brackets that close after it, before white space or the end of
# the text; or an empty line.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|$)|(?=\n[ \t]*\n)")
_ABBREVIATIONS = re.compile(r"mrs?|ms|dr|prof|st|sra?|srta|mme|mlle|capt|gen|lt|sgt|rev|vs|e\.g|i\.e", re.IGNORECASE)
_INITIALS = re.compile(r"[A-ZÀ-Ý](\.[A-ZÀ-Ý])*")


def whole_text(text: str) -> str:
    """All of it, without the white space around it."""
    return text.strip()


def first_line(text: str) -> str:
    """The first line that is not empty."""
    return text.strip().partition("\n")[0].rstrip()


def first_sentence(text: str) -> str:
    """The first sentence."""
    return first_sentences(text, 1)


def three_sentences(text: str) -> str:
    """The first three sentences."""
    return first_sentences(text, 3)


def first_sentences(text: str, n: int) -> str:
    """The first `n` sentences as they stand; an unfinished one counts.

    A sentence ends at `. ! ? …` before white space, but not after a known abbreviation or an initial; or at an empty
    line.

    >>> first_sentences("Mr. Fox ran. He hid! Then he slept.", 2)
    'Mr. Fox ran. He hid!'
    """
    text = text.strip()
    begin = 0
    for match in _END.finditer(text):
        sentence = text[begin : match.end()].strip()
        if not sentence or (match[0].startswith(".") and _is_abbreviation(text[: match.start()])):
            continue
        begin = match.end()
        n -= 1
        if n == 0:
            return text[:begin].rstrip()
    return text


def _is_abbreviation(text: str) -> bool:
    word = re.split(r"[\s(\"“‘]", text)[-1]
    return word != "I" and bool(_ABBREVIATIONS.fullmatch(word) or _INITIALS.fullmatch(word))
