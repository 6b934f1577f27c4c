"""What each contender's precision costs: `make bench-quality`.

Mean KL divergence from transformers' fp32 and loss of perplexity, on models/demo as it is and on the stressed demo: the
same function with outlier channels as large models have them, six channels times 30 in ln_1, ln_2 and the values. The
text is the demo's evaluation.txt, 6,038 ids in windows of n_positions, each id but the first predicted once: the
protocol of quality.json.

python -m tests.benchmarks.quality --only gpt2-edge-int8 llama.cpp-q8_0
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from runtime._math import log_softmax
from tests.benchmarks.contenders import CONTENDERS, DEMO_SIZE, HERE, PLACE, STRESSED, ask, is_older, prepare
from tests.benchmarks.statistic import table
from tests.conftest import DEMO

REFERENCE = "transformers-fp32"
SIZES = {DEMO_SIZE: "demo", STRESSED: "stressed demo"}  # and how the table calls them
N_ROWS = 256  # positions compared at a time
Logits = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Loss:
    """How far a contender is from fp32."""

    n_tokens: int
    perplexity: float
    loss_percent: float  # of perplexity, relative to the reference's
    top1_agreement: float  # share of positions where both find the same token likeliest
    mean_kl: float  # D(reference || contender), natural logarithm
    p99_kl: float  # 99 of 100 positions diverge less


def main() -> None:
    """Measure, print the table, keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, metavar="NAME", default=list(CONTENDERS), help="(default: all)"
    )
    parser.add_argument(
        "--output", type=Path, default=PLACE / "quality.json", help="JSON (default: build/bench/quality.json)"
    )
    parser.epilog = f"names: {', '.join(CONTENDERS)}"
    given = parser.parse_args()
    measured: dict[str, dict[str, Loss]] = {}
    missing: dict[str, str] = {}
    with ends_with_table(measured, missing, given.output):
        for name in given.only:
            title = CONTENDERS[name].title
            try:
                measured[title] = {size: measure(name, size) for size in SIZES}
            except RuntimeError as error:
                missing[title] = str(error)
                print(f"missing: {title}: {error}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def ends_with_table(measured: dict[str, dict[str, Loss]], missing: dict[str, str], output: Path) -> Iterator[None]:
    """Print and keep what was measured, after Ctrl-C too."""
    status = 0
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: the table has what was measured", file=sys.stderr)
        status = 130
    print(markdown(measured, missing))
    losses = {
        title: {size: dataclasses.asdict(loss) for size, loss in by_size.items()} for title, by_size in measured.items()
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps({"protocol": __doc__, "losses": losses, "missing": missing}, indent=1) + "\n")
    if status:
        sys.exit(status)


def markdown(measured: dict[str, dict[str, Loss]], missing: dict[str, str]) -> str:
    """A row a contender; the tables' unit of KL is a thousandth of a nat."""
    head = [""]
    for said in SIZES.values():
        head += [f"{said}: mean KL, 10⁻³", "99th percentile", "perplexity, loss %", "top-1, %"]
    rows = [[title, *(cell for size in SIZES for cell in cells(by_size[size]))] for title, by_size in measured.items()]
    return "\n".join([table(head, rows), *(f"Missing: {title}: {reason}" for title, reason in missing.items())])


def cells(loss: Loss) -> list[str]:
    """The figures of one model."""
    return [
        f"{1e3 * loss.mean_kl:z.2f}",
        f"{1e3 * loss.p99_kl:z.1f}",
        f"{loss.loss_percent:+z.2f}",
        f"{100 * loss.top1_agreement:.1f}",
    ]


def columns(name: str) -> dict[str, float]:
    """The quality of a contender as the benchmark's tables have it, by the name of each measure."""
    losses = {size: measure(name, size) for size in SIZES}
    kls = {f"kl {size}": loss.mean_kl for size, loss in losses.items()}
    return kls | {f"loss {size}": loss.loss_percent for size, loss in losses.items()}


def measure(name: str, size: str) -> Loss:
    """The loss of a contender on DEMO_SIZE or STRESSED, kept beside its folder until that changes.

    Raises RuntimeError with the reason in one line where the contender cannot be had, or gives no logits.
    """
    folder = prepare(name, size)
    reference = reference_logprobs(size)
    kept = PLACE / size / f"{name}.quality.json"
    if is_older(kept, [folder, reference, Path(__file__), HERE / "peers" / f"{CONTENDERS[name].peer}.py"]):
        print(f"measuring {CONTENDERS[name].title}: {SIZES[size]}", file=sys.stderr, flush=True)
        ids, n_positions = read_ids()
        logits = kept.with_suffix(".logits")
        shape = write_logits(name, folder, ids, n_positions, logits)
        try:
            found = np.memmap(logits, np.float32, "r", shape=shape)
            loss = compare(np.memmap(reference, np.float32, "r", shape=shape), found, np.array(ids[1:]))
            del found  # Windows deletes no mapped file
        finally:
            logits.unlink(missing_ok=True)
        write_text(kept, json.dumps(dataclasses.asdict(loss)))
    return Loss(**json.loads(kept.read_text(encoding="utf-8")))


def reference_logprobs(size: str) -> Path:
    """A file of transformers' fp32 log-probabilities, [n_ids - 1, n_vocab] fp32."""
    source, kept = prepare(REFERENCE, size), PLACE / size / "reference.logprobs"
    if is_older(kept, [*source.iterdir(), Path(__file__)]):
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name("partial.logprobs")
        shape = write_logits(REFERENCE, source, *read_ids(), partial)
        logits = np.memmap(partial, np.float32, "r+", shape=shape)
        for rows in slices(len(logits)):
            logits[rows] = log_softmax(logits[rows])
        logits.flush()
        del logits
        partial.replace(kept)
    return kept


def read_ids() -> tuple[list[int], int]:
    """The demo's evaluation text as ids, and how many its model takes."""
    text = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    return Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids, config["n_positions"]


def windows(ids: list[int], size: int) -> list[list[int]]:
    """Ids in disjoint windows: all but the last id, which is predicted only."""
    return [ids[begin : min(begin + size, len(ids) - 1)] for begin in range(0, len(ids) - 1, size)]


def write_logits(name: str, folder: Path, ids: list[int], n_positions: int, target: Path) -> tuple[int, int]:
    """A file of the contender's logits, fp32, and its shape [n_ids - 1, n_vocab]."""
    request = {"folder": str(folder), "threads": os.cpu_count() or 1, "windows": windows(ids, n_positions)}
    n_rows, n_vocab = ask(CONTENDERS[name], "logits", **request, target=str(target))
    return n_rows, n_vocab


def compare(reference: Logits, logits: Logits, targets: NDArray[np.int64]) -> Loss:
    """Log-probabilities of the reference and logits of a contender, [n, n_vocab], with the id that follows each."""
    n = len(targets)
    divergences = np.empty(n, np.float64)
    nll = {"reference": 0.0, "contender": 0.0}
    n_same = 0
    for rows in slices(n):
        expected, found = np.array(reference[rows]), log_softmax(np.array(logits[rows]))
        at_targets = np.arange(len(expected)), targets[rows]
        nll["reference"] -= float(expected[at_targets].sum(dtype=np.float64))
        nll["contender"] -= float(found[at_targets].sum(dtype=np.float64))
        n_same += int((expected.argmax(-1) == found.argmax(-1)).sum())
        divergences[rows] = (np.exp(expected) * (expected - found)).sum(-1, dtype=np.float64)
    return Loss(
        n_tokens=n,
        perplexity=math.exp(nll["contender"] / n),
        loss_percent=100 * math.expm1((nll["contender"] - nll["reference"]) / n),
        top1_agreement=n_same / n,
        mean_kl=float(divergences.mean()),
        p99_kl=float(np.percentile(divergences, 99)),
    )


def slices(n: int) -> Iterator[slice]:
    """N_ROWS at a time."""
    for begin in range(0, n, N_ROWS):
        yield slice(begin, min(begin + N_ROWS, n))


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step."""
    partial = path.with_name(f"partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
