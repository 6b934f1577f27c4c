"""Prompt lookup and draft models, with and without: `python -m tests.benchmarks.speculation`.

Every row of the table is one text, decoded with and without in turn in one process; medians compared. Random weights
repeat themselves soon when greedy and never when sampled, so they show the two ends. Models are built once under
build/speculation.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from export import build
from export.checkpoint import random_weights as random_checkpoint
from runtime import complete, load
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from tests.conftest import DEMO, REPOSITORY

PLACE = REPOSITORY / "build" / "speculation"
PROMPT = "Once upon a time there was a little mouse who"
LIST = "The cat sat on the mat. The dog sat on the log. The hen sat in the pen. " * 3
N_NEW = 256


class Case(NamedTuple):
    """A text to decode, and what is switched on for one of its two runs."""

    name: str
    model: Model
    prompt: str
    options: dict[str, Any]
    aid: dict[str, Any]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="how often each case runs (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a pass (default: 2)")
    parser.add_argument("--large", default="gpt2-medium", help="the model beside a draft (default: gpt2-medium)")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    given = parser.parse_args()
    print(f"{N_NEW} tokens, {given.threads} threads, {given.rounds} rounds, medians\n")
    print("| | without, tok/s | with, tok/s | ratio | tokens a pass |\n|---|---|---|---|---|")
    for case in cases(given.threads, given.large, given.only):
        before, after, n_per_pass = measure(case, given.rounds)
        print(f"| {case.name} | {before:.1f} | {after:.1f} | {after / before:.2f}x | {n_per_pass:.2f} |", flush=True)


def cases(threads: int, large: str, only: str) -> Iterator[Case]:
    """What is compared; models are opened as they are needed."""
    sampled = {"temperature": 1.0, "seed": 1}
    plans: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("demo, greedy, a text that repeats", "demo", "", LIST, {}),
        ("demo, sampled (temperature 1)", "demo", "", PROMPT, sampled),
        ("random gpt2, greedy: it repeats", "gpt2", "", LIST, {}),
        ("random gpt2, sampled: nothing repeats", "gpt2", "", PROMPT, sampled),
        ("demo, itself as draft", "demo", "demo", PROMPT, {}),
        ("random gpt2, a draft that is always wrong", "gpt2", "distilgpt2", PROMPT, sampled),
        (f"random {large}, a draft that is always wrong", large, "distilgpt2", PROMPT, sampled),
    ]
    for name, model, draft, prompt, options in plans:
        if only in name:
            aid = {"draft": load(folder(draft), threads=threads)} if draft else {"lookup": 10}
            yield Case(name, load(folder(model), threads=threads), prompt, options, aid)


def folder(name: str) -> Path:
    """The model folder of the demo or of random weights, built at its first use."""
    target = PLACE / name
    if not target.is_dir():
        checkpoint, how = DEMO, ["--verify", "quality"]
        shutil.rmtree(PLACE / "checkpoint", ignore_errors=True)
        if name != "demo":  # the kernel that verification chooses for trained weights
            checkpoint, how = PLACE / "checkpoint", ["--verify", "none", "--kernel", "dense"]
            random_checkpoint.write(name, checkpoint)
        build.main([str(checkpoint), "--no-reference", *how, "--output", str(target)])
        shutil.rmtree(PLACE / "checkpoint", ignore_errors=True)
    return target


def measure(case: Case, rounds: int) -> tuple[float, float, float]:
    """Tokens a second without and with, and tokens a pass with."""
    without, aided = list[float](), list[float]()
    for number in range(rounds):
        turns = ((without, {}), (aided, case.aid))
        for rates, aid in turns[:: -1 if number % 2 else 1]:
            rates.append(decode(case, aid))
    with _Counted(case.model) as counted:
        decode(case, case.aid)
    return statistics.median(without), statistics.median(aided), (N_NEW - 1) / (counted.n_passes - counted.n_prefill)


def decode(case: Case, aid: dict[str, Any]) -> float:
    """Tokens a second, the first left out, which the prompt's pass gives."""
    never_ends = {"min_new_tokens": N_NEW, "max_new_tokens": N_NEW}
    [found] = complete(case.prompt, model=case.model, **never_ends, **case.options, **aid)
    return (N_NEW - 1) / found.decode_seconds


class _Counted:
    """Counts the passes of one model."""

    def __init__(self, model: Model) -> None:
        self._model, self.n_passes, self.n_prefill = model, 0, 1
        self._originals = {name: getattr(InPlaceCache, name) for name in ("extend", "step")}

    def __enter__(self) -> _Counted:
        for name, original in self._originals.items():
            setattr(InPlaceCache, name, self._counting(original))
        return self

    def __exit__(self, *_: object) -> None:
        for name, original in self._originals.items():
            setattr(InPlaceCache, name, original)

    def _counting(self, original: Any) -> Any:
        def count(cache: Any, ids: Any, **rest: Any) -> Any:
            self.n_passes += cache._session is self._model.session
            return original(cache, ids, **rest)

        return count


if __name__ == "__main__":
    main()
