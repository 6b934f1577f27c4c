"""A prompt and single tokens through a model, each between two marks for count.c; needs the runtime alone.

python -m tests.emulation.steps FOLDER N_PROMPT N_STEPS
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path

from runtime.model.model import Model
from runtime.model.prefill import prefill

MARK = 0x6B0C0DE  # count.c has it too; no file has this number
THREADS = 1


def main(folder: Path, n_prompt: int, n_steps: int) -> None:
    """Mark the beginning, the end of prefill, and the end of each step."""
    warnings.simplefilter("ignore")
    prompt = [index % 200 for index in range(n_prompt)]
    with Model(folder, threads=THREADS) as model:
        cache = model.new_cache(n_prompt + n_steps)
        # Once before, since the first pass prepares much.
        prefill(model.new_cache(n_prompt + n_steps), prompt)
        mark()
        id_ = int(prefill(cache, prompt).argmax())
        mark()
        for _ in range(n_steps):
            id_ = int(cache.step([id_])[0].argmax())
            mark()


def mark() -> None:
    """A system call that fails."""
    with contextlib.suppress(OSError):
        os.close(MARK)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
