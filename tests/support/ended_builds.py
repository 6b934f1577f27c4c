"""Builds that a signal ends at each of their file operations in turn; POSIX only.

python -m tests.support.ended_builds SIGKILL CHECKPOINT OUTPUT
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

from export import build, pipeline  # noqa: F401  the pipeline is imported once, before the forks
from export.quantize import texts
from tests.support.building import QUICK, contents

OPERATIONS = {"open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "ctypes.dlsym"}
UNTOUCHED = 77  # exit code of a build that had fewer operations
BUILT, INTERRUPTED, KILLED = 0, 130, -signal.SIGKILL


def main(name: str, checkpoint: str, output: Path) -> None:
    """Replace an int8 by an int4 model or the other way round, ended one operation later each time.

    Prints the exit codes. Raises AssertionError if anything but the one or the other model is ever at the output.
    """
    arguments = {
        p: [checkpoint, *QUICK, "--precision", p, "--output", str(output), "--force"] for p in ("int8", "int4")
    }
    texts.AMOUNTS = dict.fromkeys(texts.AMOUNTS, texts.Amount(200, 64))  # quick
    whole = {}
    for precision in arguments:
        assert run_until(0, signal.SIGKILL, arguments[precision]) == UNTOUCHED
        whole[precision] = contents(output)
    for at in itertools.count(1):
        old = next(precision for precision, files in whole.items() if files == contents(output))
        new = "int8" if old == "int4" else "int4"
        code = run_until(at, signal.Signals[name], arguments[new])
        left = {path.name for path in output.parent.iterdir()} - {output.name}
        allowed = {UNTOUCHED: [new], BUILT: [new], INTERRUPTED: [old], KILLED: [old, new]}[code]
        assert contents(output) in [whole[precision] for precision in allowed], f"operation {at}, exit code {code}"
        assert code == KILLED or not left, f"operation {at}, exit code {code}: left {left}"
        if code == UNTOUCHED:
            return
        print(code)


def run_until(at: int, number: signal.Signals, arguments: list[str]) -> int:
    """The exit code of a build in a process of its own that gets the signal just before its operation number `at`."""
    process = os.fork()
    if process == 0:
        operations = itertools.count(1)
        place = str(Path(arguments[arguments.index("--output") + 1]).parent)

        def count(event: str, arguments: tuple[object, ...]) -> None:
            here = event == "ctypes.dlsym" or any(place in str(argument) for argument in arguments)
            if event in OPERATIONS and here and next(operations) == at:
                signal.raise_signal(number)

        sys.argv = ["export/build.py", *arguments]
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        sys.addaudithook(count)
        code = build.run()
        os._exit(code or (BUILT if next(operations) > at > 0 else UNTOUCHED))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
