"""How the command line prints results: JSON for machines, plain text for people."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from runtime.generation.completion import Completion
from runtime.options import Options

# Control characters; DEL counts among the second range.
_C0 = range(0x20)
_C1 = range(0x7F, 0xA0)
_VISIBLE = {code: f"\\x{code:02x}" for code in (*_C0, *_C1) if chr(code) not in "\n\t"}
_NAMES = "|".join([*(field.name for field in dataclasses.fields(Options)), "verify"])
# json escapes the other control characters itself.
_IN_JSON = {code: f"\\u{code:04x}" for code in _C1}
_BAR_WIDTH = 24
# Seconds between two states of a progress bar.
_BAR_PERIOD = 0.1


def plain(text: str) -> str:
    r"""The text with its control characters, except line ends and tabs, written as `\x1b`.

    A text of a file or a model must not send commands to the terminal that shows it.
    """
    return text.translate(_VISIBLE)


def in_words_of_command_line(message: str) -> str:
    """The runtime's message, with `overflow='slide'` as `--overflow slide`."""
    return re.sub(rf"\b({_NAMES})='(\w+)'", lambda m: f"--{m[1].replace('_', '-')} {m[2]}", message)


class PlainStream:
    """A text stream that writes `plain` text and passes everything else on to another stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Returns the number of characters given."""
        self._stream.write(plain(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts, one after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def to_json(value: object) -> str:
    """JSON over several lines: every character of a text as it is, except control characters."""
    return json.dumps(value, ensure_ascii=False, indent=2).translate(_IN_JSON)


def print_line(value: object) -> None:
    """Print JSON on one line at once, for readers that take a line as it comes."""
    print(json.dumps(value, ensure_ascii=False).translate(_IN_JSON), flush=True)


def as_json(value: Any, **more: object) -> str:
    """JSON of a dataclass and more facts."""
    return to_json(dataclasses.asdict(value) | more)


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr)


class ProgressBar:
    """How much is done, on the last line of standard error where that is a terminal."""

    def __init__(self, total: int, unit: str) -> None:
        self._total = total
        self._unit = unit
        self._done = 0
        self._drawn_at = 0.0
        self._is_drawn = False
        # The plain stream would show the carriage return instead of sending it.
        self._stream = sys.__stderr__ if sys.stderr is not None and sys.stderr.isatty() else None

    def add(self, n: int) -> None:
        """So much more is done."""
        self._done += n
        now = time.monotonic()
        if self._stream is None or now - self._drawn_at < _BAR_PERIOD:
            return
        self._drawn_at = now
        self._is_drawn = True
        print(f"\r{progress_line(self._done, self._total)} {self._unit}", end="", file=self._stream, flush=True)

    def clear(self) -> None:
        """Remove the bar, so that a line of text can be printed in its place."""
        if self._is_drawn and self._stream is not None:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._is_drawn = False


def progress_line(done: int, total: int) -> str:
    """A bar and the numbers.

    >>> progress_line(6, 24)
    '[######                  ] 6 of 24'
    """
    n_full = _BAR_WIDTH * min(done, total) // max(total, 1)
    return f"[{'#' * n_full:<{_BAR_WIDTH}}] {done} of {total}"


def show_progress(done: int, total: int) -> None:
    """Draw a progress bar on standard error, in place, where that is a terminal."""
    if sys.stderr.isatty() and sys.__stderr__ is not None:
        end = "" if done < total else "\n"
        print(f"\r{progress_line(done, total)}", end=end, file=sys.__stderr__, flush=True)


def say_speed(completions: Sequence[Completion], seconds: float) -> None:
    """Print the number of tokens and the speed on standard error."""
    n_prompt = sum(completion.n_prompt_tokens for completion in completions)
    n_new = sum(completion.n_tokens for completion in completions)
    say(f"{n_prompt} prompt tokens, {n_new} new in {seconds:.2f} s: {n_new / seconds:.1f} tokens/s")


def as_table(facts: dict[str, Any]) -> str:
    """One line for each fact."""
    width = max(map(len, facts)) + 2
    return "\n".join(f"{name:<{width}}{_shown(value)}" for name, value in facts.items())


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)
