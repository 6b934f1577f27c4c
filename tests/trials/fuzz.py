"""Coverage-guided fuzzing of prompts and options: `python -m tests.trials.fuzz --seconds 60`.

The properties of tests/generation/test_hostile.py. libFuzzer chooses examples for the branches of `runtime` they reach.
Each runs in a process of its own, which a crash, a hang or too much memory may end. What reached something new is kept
under build/trials, and the next run begins with it. atheris has wheels for Linux on x86-64.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from tests.trials.table import PLACE, Row, record

PROPERTIES = {
    "test_generate": "generate, stream",
    "test_complete": "complete",
    "test_score": "score",
    "test_score_text": "score_text",
    "test_perform": "perform",
    "test_prefix": "prefix",
    "test_evaluate": "evaluate",
    "test_the_command_line": "the command line",
}
HANGS, MEGABYTES, LONGEST = 120, 4096, 4096  # seconds and memory that no example may take; bytes of one
ENDS = {0: "no error", 70: "a hang", 71: "out of memory", 77: "a wrong error or result"}


def main() -> int:
    """Print a row a property; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=100, help="of each property (default: 100)")
    parser.add_argument("--runs", type=int, default=-1, help="of each property at most (default: no limit)")
    parser.add_argument("--property", choices=PROPERTIES, action="append", help="default: all")
    parser.add_argument("--work", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(*given.work)
    rows = []
    for name in given.property or PROPERTIES:
        n, end, said = fuzz(name, given.seconds, given.runs)
        rows.append(Row(f"fuzzed: {PROPERTIES[name]}", n, end))
        print(f"{PROPERTIES[name]}: {n:,} examples, {end}", flush=True)
        print("" if end == ENDS[0] else said, file=sys.stderr)
    record("fuzz", rows)
    return int(any(row.happened != ENDS[0] for row in rows))


def fuzz(name: str, seconds: int, runs: int) -> tuple[int, str, str]:
    """How many examples of a property were tried, how that ended, and the end of what was printed.

    Not all bytes that libFuzzer makes up are an example; those are not counted.
    """
    corpus = PLACE / "corpus" / name.rpartition(":")[2]
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        options = [f"-max_total_time={seconds}", f"-runs={runs}", f"-timeout={HANGS}", f"-rss_limit_mb={MEGABYTES}"]
        options += [f"-max_len={LONGEST}", f"-artifact_prefix={place}/"]
        command = [sys.executable, "-m", "tests.trials.fuzz", "--work", name, *options, str(corpus)]
        environment = {**os.environ, "GPT2_EDGE_CACHE": place, "TMPDIR": place}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        count = Path(place) / "count"
        n = int(count.read_text(encoding="ascii")) if count.is_file() else 0
    return n, ENDS.get(done.returncode, f"exit code {done.returncode}"), f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


def work(name: str, *options: str) -> None:
    """Fuzz one property; libFuzzer ends the process."""
    import atheris

    module, _, attribute = name.rpartition(":")
    with atheris.instrument_imports(include=["runtime"]):
        from tests.support import hostile

        property_: Any = getattr(importlib.import_module(module or "tests.generation.test_hostile"), attribute)
    hostile.tiny()
    warnings.simplefilter("error")
    count = Path(tempfile.gettempdir()) / "count"
    examples = itertools.count(1)

    def try_bytes(data: bytes) -> None:
        if property_.hypothesis.fuzz_one_input(data) is not None:
            count.write_text(str(next(examples)), encoding="ascii")

    atheris.Setup([sys.argv[0], *options], try_bytes)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
