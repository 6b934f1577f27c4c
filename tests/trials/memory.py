"""What `runtime.estimate` says against what the processes then take: `python -m tests.trials.memory`.

Every model is loaded, and a batch of it filled to its context, in a process of its own, whose peak of resident memory
is compared; `--json` keeps what each stage took, from which the constants of runtime/model/memory.py are set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import runtime
from runtime.model.model import Model
from tests.trials.process import peak_memory, resident_memory
from tests.trials.table import PLACE, Row, record

BUILDS = {
    "int8": ["--precision", "int8"],
    "dense": ["--precision", "int8", "--kernel", "dense"],
    "int4": ["--precision", "int4"],
    "fp32": ["--precision", "fp32"],
}
CHECKPOINTS = {"demo": "models/demo", "gpt2": "random:gpt2"}
ROWS, CONTEXTS, N_STEPS = (1, 8), (64, 512, 1024), 4
ALLOWED = 0.15  # of the measured peak


def main() -> int:
    """Print a row a run, and the largest error; returns 1 where one is above what is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="model folders (default: builds them)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the runs here, too")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "ROWS", "CONTEXT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        folder, rows, context = given.measure
        print(json.dumps(take(Path(folder), int(rows), int(context))))
        return 0
    print("| model | rows | context | estimated, MB | taken, MB | error, % |\n|---|---|---|---|---|---|")
    runs = []
    for run in trials(given.folders or build_models()):
        runs.append(run)
        print(
            "| {model} | {rows} | {context} | {estimated:.0f} | {taken:.0f} | {error:+.1f} |".format(**run), flush=True
        )
    if given.json:
        given.json.write_text(json.dumps(runs, indent=1), encoding="utf-8")
    worst = max(abs(run["error"]) for run in runs)
    print(f"\n{len(runs)} runs, the largest error is {worst:.1f} %; {ALLOWED:.0%} is allowed")
    record("memory", [Row("`estimate` against the peak of a process", len(runs), f"at most {worst:.1f} % off")])
    return int(worst > 100 * ALLOWED)


def build_models() -> Iterator[Path]:
    """Each checkpoint at each precision, built once under build/trials."""
    for name, checkpoint in CHECKPOINTS.items():
        for precision, options in BUILDS.items():
            folder = PLACE / f"{name}-{precision}"
            if not folder.is_dir():
                command = ["export/build.py", checkpoint, *options, "--no-reference", "--output", str(folder)]
                if name == "gpt2":
                    command += ["--verify", "none"]
                subprocess.run([sys.executable, *command], check=True, capture_output=True)
            yield folder


def trials(
    folders: Sequence[Path] | Iterator[Path], rows: Sequence[int] = ROWS, contexts: Sequence[int] = CONTEXTS
) -> Iterator[dict[str, Any]]:
    """Estimate and measurement of every folder, number of rows and context that the model has; MB."""
    for folder in folders:
        for n_rows in rows:
            for context in sorted({min(c, n_positions(folder)) for c in contexts}):
                estimated = runtime.estimate(folder, context=context, rows=n_rows).total
                taken = measure(folder, n_rows, context)
                error = 100 * (estimated / taken["peak"] - 1)
                yield {
                    "model": folder.name,
                    "rows": n_rows,
                    "context": context,
                    "estimated": estimated / 1e6,
                    "taken": taken["peak"] / 1e6,
                    "error": error,
                    "stages": taken,
                }


def n_positions(folder: Path) -> int:
    """The model's context."""
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["n_positions"])


def measure(folder: Path, rows: int, context: int) -> dict[str, int]:
    """`take` in a process of its own."""
    command = [sys.executable, "-m", "tests.trials.memory", "--measure", str(folder), str(rows), str(context)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def take(folder: Path, rows: int, context: int) -> dict[str, int]:
    """Load a model and fill a batch: bytes of resident memory at each stage, and its peak."""
    stages = {"imported": resident_memory()}
    model = Model(folder, threads=2)
    stages |= {"loaded": resident_memory(), "load_peak": peak_memory()}
    cache = model.new_cache(context, rows)
    ids = [index * 7 % model.config.vocab_size for index in range(context - N_STEPS)]
    for row in range(rows):
        for begin in range(0, len(ids), 256):
            cache.extend(ids[begin : begin + 256], row=row)
    for id_ in range(N_STEPS):
        cache.step([id_] * rows)
    return stages | {"peak": peak_memory()}


if __name__ == "__main__":
    sys.exit(main())
