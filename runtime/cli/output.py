"""How the command line prints results: JSON for machines, plain text for people."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from runtime.generation.completion import Completion
from runtime.options import Options

_C0, _C1 = range(0x20), range(0x7F, 0xA0)  # control characters; DEL counts among the second
_VISIBLE = {code: f"\\x{code:02x}" for code in (*_C0, *_C1) if chr(code) not in "\n\t"}
_NAMES = "|".join([*(field.name for field in dataclasses.fields(Options)), "verify"])
_IN_JSON = {code: f"\\u{code:04x}" for code in _C1}  # json escapes the others


def plain(text: str) -> str:
    r"""The text with its control characters, but for line ends and tabs, written as `\x1b`.

    What a file or a model says must not command the terminal that it is shown on.
    """
    return text.translate(_VISIBLE)


def in_words_of_command_line(message: str) -> str:
    """The runtime's message, with `overflow='slide'` as `--overflow slide`."""
    return re.sub(rf"\b({_NAMES})='(\w+)'", lambda m: f"--{m[1].replace('_', '-')} {m[2]}", message)


class PlainStream:
    """A text stream that writes `plain` text, and is the stream itself in all else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Returns the number of characters given."""
        self._stream.write(plain(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """One after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def to_json(value: object) -> str:
    """JSON for a reader of any kind: every character of a text as it is, but for control characters."""
    return json.dumps(value, ensure_ascii=False, indent=2).translate(_IN_JSON)


def as_json(value: Any, **more: object) -> str:
    """A dataclass, and more facts."""
    return to_json(dataclasses.asdict(value) | more)


def show_progress(done: int, total: int) -> None:
    """On standard error, in place, where that is a terminal."""
    if sys.stderr.isatty() and sys.__stderr__ is not None:  # the plain stream would show the carriage return
        print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.__stderr__, flush=True)


def say_speed(completions: Sequence[Completion], seconds: float) -> None:
    """On standard error."""
    n_prompt, n_new = sum(c.n_prompt_tokens for c in completions), sum(c.n_tokens for c in completions)
    print(f"{n_prompt} prompt tokens, {n_new} new in {seconds:.2f} s: {n_new / seconds:.1f} tokens/s", file=sys.stderr)


def as_table(facts: dict[str, Any]) -> str:
    """A fact a line."""
    width = max(map(len, facts)) + 2
    return "\n".join(f"{name:<{width}}{_shown(value)}" for name, value in facts.items())


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)
