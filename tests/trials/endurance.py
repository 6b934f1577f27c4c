"""Many generations and loads in one process: `python -m tests.trials.endurance`.

Resident memory is read as it goes; its slope, once everything has been used, is what each generation or load leaves
behind. File descriptors and threads are counted before and after.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from runtime.model.model import Model
from tests.trials.memory import build_models
from tests.trials.process import n_open_files, n_threads, resident_memory
from tests.trials.table import Row, record

N_GENERATIONS, N_LOADS, N_READINGS = 20_000, 200, 100
WARM_UP = 0.25  # of the readings
WORDS = [
    "once",
    "upon",
    "a",
    "time",
    "there",
    "was",
    "a",
    "little",
    "mouse",
    "who",
    "lived",
    "in",
    "the",
    "old",
    "wood",
    "and",
]


def main() -> int:
    """Print a row for generations and one for loads; returns 1 if anything was left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=N_GENERATIONS, help=f"default: {N_GENERATIONS}")
    parser.add_argument("--loads", type=int, default=N_LOADS, help=f"default: {N_LOADS}")
    parser.add_argument("--folder", type=Path, help="model folder (default: the demo, built)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    given = parser.parse_args()
    folder = given.folder or next(iter(build_models()))
    print("| what | times | slope, bytes each | threads left | files left |\n|---|---|---|---|---|")
    report = {"generations": endure_generations(folder, given.generations), "loads": endure_loads(folder, given.loads)}
    for what, figures in report.items():
        print(f"| {what} | {figures['times']} | {figures['slope']:.0f} | {figures['threads']} | {figures['files']} |")
    rows = [Row(f"{what} in one process", figures["times"], tell(figures)) for what, figures in report.items()]
    record("endurance", rows)
    if given.json:
        given.json.write_text(json.dumps(report), encoding="utf-8")
    return int(any(is_bad(figures) for figures in report.values()))


def tell(figures: dict[str, Any]) -> str:
    """What each left behind."""
    return f"{figures['slope']:.0f} bytes each, {figures['threads']} threads and {figures['files']} files left over"


def is_bad(figures: dict[str, Any]) -> bool:
    """Whether something was left: threads, files, or a growth that 20,000 generations would make ten megabytes."""
    return bool(figures["threads"] or figures["files"] or figures["slope"] * figures["times"] > 10e6)


def endure_generations(folder: Path, times: int) -> dict[str, Any]:
    """Short continuations of prompts of mixed lengths, some sampled, some ended early, some refused."""
    with Model(folder, threads=2) as model:
        return watch(lambda index: generate(model, index), times)


def generate(model: Model, index: int) -> None:
    """One of several kinds of generation, in turn."""
    prompt = " ".join(WORDS[at % len(WORDS)] for at in range(index, index + 1 + index * 7 % 40))
    if index % 10 == 9:
        stream = runtime.stream(prompt, model=model, max_new_tokens=8)
        next(stream)
        stream.close()
    elif index % 50 == 8:
        try:
            runtime.generate(prompt, model=model, max_new_tokens=10**6)
        except ValueError:
            return
        raise AssertionError("a continuation of a million tokens passes the context")
    elif index % 10 == 7:
        runtime.complete([prompt, "A mouse"], model=model, n=2, temperature=0.9, seed=index, max_new_tokens=3)
    else:
        sampled = {"temperature": index % 3 / 2, "seed": index} if index % 3 else {}
        runtime.generate(prompt, model=model, max_new_tokens=1 + index % 6, **sampled)


def endure_loads(folder: Path, times: int) -> dict[str, Any]:
    """Models loaded, used and closed, one after the other."""

    def load(_index: int) -> None:
        with runtime.load(folder, threads=2) as model:
            runtime.generate("Once", model=model, max_new_tokens=2)

    return watch(load, times)


def watch(work: Callable[[int], object], times: int) -> dict[str, Any]:
    """Do it so often: what each time leaves in memory once warm, bytes; threads and files left over."""
    work(0)
    threads, files = n_threads(), n_open_files()
    at, readings = [], []
    for index in range(times):
        work(index)
        if index % max(1, times // N_READINGS) == 0:
            gc.collect()
            at.append(index)
            readings.append(resident_memory())
    warm = int(WARM_UP * len(at))
    return {
        "times": times,
        "slope": slope(at[warm:], readings[warm:]),
        "threads": n_threads() - threads,
        "files": n_open_files() - files,
        "resident": readings,
    }


def slope(at: Sequence[int], readings: Sequence[int]) -> float:
    """Theil's: the median slope between any two readings, which the arena's ups and downs do not sway."""
    first, second = np.triu_indices(len(at), 1)
    x, y = np.array(at, float), np.array(readings, float)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


if __name__ == "__main__":
    sys.exit(main())
