"""The table of reliability trials: `python -m tests.trials.table` prints what the latest run of each found."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PLACE = Path(__file__).resolve().parents[2] / "build" / "trials"
TRIALS = (
    "damage",
    "fuzz",
    "lengths",
    "server",
    "faults",
    "onnx_reading",
    "tokenizer_files",
    "builds",
    "endurance",
    "memory",
)


class Row(NamedTuple):
    """What was tried, how often, and what happened."""

    tried: str
    times: int
    happened: str


def main() -> int:
    """Print Markdown; returns 1 where a trial has not been run."""
    print("| tried | how often | what happened | again |\n|---|---|---|---|")
    missing = [trial for trial in TRIALS if not _path(trial).is_file()]
    for trial in TRIALS:
        if trial not in missing:
            kept = json.loads(_path(trial).read_text(encoding="utf-8"))
            for tried, times, happened in kept["rows"]:
                print(f"| {tried} | {times:,} | {happened} | `{kept['command']}` |")
    if missing:
        print(f"not run: {', '.join(missing)}", file=sys.stderr)
    return int(bool(missing))


def record(trial: str, rows: Sequence[Row]) -> None:
    """Keep the rows of a trial, and the command that it was started by."""
    PLACE.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m", f"tests.trials.{trial}", *sys.argv[1:]])
    _path(trial).write_text(json.dumps({"command": command, "rows": rows}), encoding="utf-8")


def _path(trial: str) -> Path:
    return PLACE / f"{trial}.json"


if __name__ == "__main__":
    sys.exit(main())
