"""The text of WikiText's files, prepared as for the published perplexities."""

from __future__ import annotations

import re

_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))


def join_lines(text: str) -> str:
    """Lines, each with its own end, joined by two line ends: the text of transformers' documented recipe."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    return "\n\n".join(line if line.strip() else "" for line in lines)


def split_pages(text: str) -> list[str]:
    """Articles: each begins with a heading such as ` = Title = `. A text without headings is one article."""
    pages: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _is_title(line.strip()):
            pages.append([])
        pages[-1].append(line)
    return [page for page in map("\n".join, pages) if page.strip()]


def _is_title(line: str) -> bool:
    return line.startswith("= ") and line.endswith(" =") and "= =" not in (line[:3], line[-3:])


def detokenize(page: str) -> str:
    """Undo the spaces around punctuation and the marks in numbers, as lm-evaluation-harness does for WikiText.

    The rules are the harness's, in its order, with their effects on unusual text (` N ` becomes ` 1 `).
    """
    page = page.replace("s '", "s'")
    for mark in "-,.":
        page = page.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        page = page.replace(f" {mark} ", f"{mark} ")
    for begin, end in _BRACKETS:
        page = _strip_within(page, begin, end)
    for n in (4, 3, 2):
        page = page.replace(" ".join("=" * n), "=" * n)
    for before, after in ((" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")):
        page = page.replace(before, after)
    return page


def _strip_within(page: str, begin: str, end: str) -> str:
    r"""Remove white space just inside brackets, each from the first `begin` to the next `end`.

    The harness's `\(\s*([^)]*?)\s*\)` does the same, but takes cubic time for many open brackets and spaces.
    """
    closed, last, rest = page.rpartition(end)
    pattern = f"{re.escape(begin)}([^{re.escape(end)}]*){re.escape(end)}"
    return re.sub(pattern, lambda match: f"{begin}{match[1].strip()}{end}", closed + last) + rest
