#!/usr/bin/env python3
"""Build a model folder from a GPT-2 checkpoint: export, quantize, verify, publish.

python export/build.py                          OpenAI's gpt2, downloaded once
python export/build.py models/demo              the checkpoint that comes with this repository
python export/build.py random:gpt2 --no-reference
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def main(arguments: list[str] | None = None, *, before_publication: Callable[[], None] = lambda: None) -> None:
    """Build one model folder. Any error is raised, and leaves an earlier output as it was.

    arguments: of the command line; None takes those of this process. before_publication: called when the model is
    complete, before it is moved to its place.

    >>> main(["models/demo", "--no-reference", "--output", "models/mine"])  # doctest: +SKIP
    """
    from export import arguments as command_line
    from export import interrupts, pipeline

    interrupts.raise_keyboard_interrupt()
    pipeline.build(command_line.parse(arguments), before_publication)


def run() -> int:
    """`main` for a terminal, with errors as one line. Returns 0 if it is done, 1 if it failed, 128 + n for signal n."""
    from export import errors, interrupts

    return errors.exit_code(lambda: main(before_publication=interrupts.ignore))


if __name__ == "__main__":
    if not __package__:
        # Run as a script: import the packages of this clone, whatever the current directory.
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    from export import interrupts

    interrupts.exit_at_once()
    sys.exit(run())
