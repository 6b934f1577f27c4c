"""Prompts typed at a terminal, one after the other."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from runtime.cli.output import in_words_of_command_line

# Used where the user gives no --temperature, since greedy decoding soon repeats itself.
SAMPLING = {"temperature": 0.8, "top_p": 0.9}
LEAVING = ("exit", "quit")
GREETING = "Type a prompt. Ctrl-C stops a continuation; exit, quit or Ctrl-D leaves."


def is_at_terminal() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def ask(answer: Callable[[str], None]) -> int:
    """Ask for prompts and answer each, until the user leaves; returns the exit status."""
    # Importing readline gives input() line editing, and the prompts of this session as history. A Windows console has
    # no readline and edits lines itself.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    print(GREETING, file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return 0
        if prompt.strip() in LEAVING:
            return 0
        try:
            answer(prompt)
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except ValueError as error:
            # The prompt may be too long, for example; the next one may be right.
            print(f"gpt2-edge: error: {in_words_of_command_line(str(error))}", file=sys.stderr)
