"""Short sentences one at a time and together: `python -m tests.benchmarks.surprisal [MODEL FOLDER ...]`.

For `runtime.surprisal` and `runtime.score_text`, the time of all sentences alone and together, in turn in one process;
the ratio is the median over the rounds. Without a folder, a GPT-2 124M of random weights is built once, under
build/surprisal.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import runtime
from export import build
from export.checkpoint import random_weights as random_checkpoint
from runtime.model.model import Model
from tests.benchmarks.statistic import describe, ratio, table
from tests.conftest import DEMO, REPOSITORY

PLACE = REPOSITORY / "build" / "surprisal"
N_SENTENCES = 64
# Words of a short sentence.
SHORT = range(3, 9)
FUNCTIONS: dict[str, Callable[..., object]] = {"surprisal": runtime.surprisal, "score_text": runtime.score_text}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="model folders")
    parser.add_argument("--rounds", type=int, default=5, help="how often both are measured (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a pass (default: 2)")
    parser.add_argument("--sentences", type=int, default=N_SENTENCES, help=f"how many (default: {N_SENTENCES})")
    given = parser.parse_args(arguments)
    texts = sentences(given.sentences)
    rows: list[list[str]] = []
    for folder in given.folders or [random_gpt2()]:
        with runtime.load(folder, threads=given.threads) as model:
            rows += [measure(name, model, texts, given.rounds) for name in FUNCTIONS]
    print(f"{len(texts)} sentences of {SHORT[0]} to {SHORT[-1]} words, {given.threads} threads, tokens a second\n")
    print(table(["model", "function", "one at a time", "together", "ratio"], rows))


def sentences(n: int) -> list[str]:
    """Short sentences of the demo's evaluation text."""
    text = " ".join((DEMO / "evaluation.txt").read_text(encoding="utf-8").split())
    found = [sentence for sentence in re.split(r"(?<=[.!?]) ", text) if len(sentence.split()) in SHORT]
    return found[:n]


def measure(name: str, model: Model, texts: Sequence[str], rounds: int) -> list[str]:
    """A row of the table."""
    function = FUNCTIONS[name]
    n_tokens = sum(len(runtime.surprisal(text, model=model).tokens) for text in texts)
    alone: list[float] = []
    together: list[float] = []
    for _ in range(rounds):
        alone.append(n_tokens / _seconds(lambda: [function(text, model=model) for text in texts]))
        together.append(n_tokens / _seconds(lambda: function(list(texts), model=model)))
    return [model.folder.name, name, describe(alone), describe(together), f"{ratio(together, alone):.2f}x"]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def random_gpt2() -> Path:
    """GPT-2 124M at int8, with the tokenizer of OpenAI's where the test data is there, else the demo's."""
    target = PLACE / "gpt2-int8"
    if not target.is_dir():
        data = REPOSITORY.parent / "shared" / "data" / "tokenizer"
        random_checkpoint.write("gpt2", PLACE / "gpt2", data if data.is_dir() else DEMO)
        work = ["--no-reference", "--no-calibration", "--verify", "none", "--output", str(target)]
        build.main([str(PLACE / "gpt2"), *work])
    return target


if __name__ == "__main__":
    main()
