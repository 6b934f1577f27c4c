"""Docstrings of this project as Markdown for mkdocstrings: parameters become a list, examples become code.

The docstrings have a line `name: meaning` for each parameter, with further lines indented, and sentences that begin
with "Raises" or "Returns". As Markdown they would run together into one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

PARAMETER = re.compile(r"(\*{0,2}[a-z_]\w*(?:(?:, | and )[a-z_]\w*)*): (.*)")
GOOGLE = re.compile(r"^\s*(Args|Returns|Raises|Example):$", re.MULTILINE)
SENTENCE = re.compile(r"(Raises|Returns|Example) ?.*")


def to_markdown(text: str) -> str:
    """The text with parameters as a list, sentences of errors as paragraphs, and doctest examples as fenced code."""
    lines: list[str] = []
    is_code = False
    is_list = False
    for line in text.splitlines():
        if line.strip().startswith(">>> ") and not is_code:
            lines += ["", "```pycon"]
            is_code = True
        elif is_code and not line.strip():
            lines.append("```")
            is_code = False
        if is_code:
            lines.append(line.strip())
        elif found := PARAMETER.fullmatch(line):
            lines += [] if is_list else [""]
            lines.append(f"- **`{found[1]}`**: {found[2]}")
            is_list = True
        elif is_list and line and not line.startswith(" "):
            lines += ["", line]
            is_list = False
        elif SENTENCE.fullmatch(line):
            lines += ["", line]
        else:
            lines.append(line)
            is_list = is_list and bool(line.strip())
    return "\n".join([*lines, "```"] if is_code else lines)


class Docstrings(Extension):
    """Applies `to_markdown` to the docstrings that griffe reads, but to those in Google's style, which it knows."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Replace the docstring of one object."""
        if not obj.docstring:
            return
        text = obj.docstring.value
        # Google's name of the section is Examples.
        is_google = GOOGLE.search(text)
        obj.docstring.value = re.sub(r"(?m)^(\s*)Example:$", r"\1Examples:", text) if is_google else to_markdown(text)
