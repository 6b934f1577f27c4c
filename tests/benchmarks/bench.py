"""GPT-2 on this machine, ours and every peer on the same random weights: `make bench`.

Each peer has an environment of its own under build/bench/venvs, made when first needed; one that cannot be had is
reported as missing. Contenders take turns, each turn in a process of its own, in an order that alternates. Ours is
built as a user builds gpt2: equalized, calibrated on the model's own text, verified.

The last table compares with what is to be reached, and needs 2 threads and 5 rounds. Preparations take about an hour
once, a round about 15 minutes with all contenders; a turn that takes longer than 15 minutes is given up.

python -m tests.benchmarks.bench --rounds 5 --threads 2 1
python -m tests.benchmarks.bench --only gpt2-edge-int8 llama.cpp-q8_0 --size gpt2-xl
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from export.checkpoint.random_weights import SIZES
from tests.benchmarks import documents, quality, targets
from tests.benchmarks.bandwidth import read_bandwidth
from tests.benchmarks.contenders import (
    CONTENDERS,
    HERE,
    OURS,
    PLACE,
    Contender,
    ask,
    check,
    environment,
    prepare,
    timed_answer,
)
from tests.benchmarks.results import BANDWIDTH, README_COLUMNS, Column, Results, speed_columns

FULL = {"prefills": [32, 128, 512, 1000], "decodes": [32, 512, 900], "batches": [4, 16], "n_new": 64}
SHORT = {"prefills": [512], "decodes": [32], "batches": [], "n_new": 32}
PLOT = Contender("plot", "plot", (0, 0))


def main() -> None:
    """Measure, write results.json after each round, print the tables."""
    given = parse()
    shape = SHORT if given.quick or given.size != "gpt2" else FULL
    results = Results(
        f"GPT-2 ({given.size}), random weights, medians (range) of {given.rounds} round{'s' * (given.rounds > 1)}",
        machine(),
    )
    try:
        measure_all(results, given, shape)
    except KeyboardInterrupt:
        print("interrupted: the tables have what was measured", file=sys.stderr)
        results.write(given.output)
        status = 130
    else:
        status = 0
    results.targets = targets.as_json(results) if given.size == "gpt2" else []
    results.write(given.output)
    columns = speed_columns(shape["prefills"], shape["decodes"], shape["batches"])
    print(results.markdown(columns))
    if given.size == "gpt2":
        print(f"\n{targets.ratio_table(results)}")
    if given.plot and results.samples:
        draw(given.output, given.plot)
    if given.docs and results.samples:
        write_documents(results, columns)
    sys.exit(status)


def write_documents(results: Results, columns: list[Column]) -> None:
    """Put the tables between their markers."""
    documents.replace(documents.BENCHMARKS, "ratios", targets.ratio_table(results))
    documents.replace(documents.BENCHMARKS, "speed", results.markdown(columns))
    without = {contender.title for contender in CONTENDERS.values() if contender.is_variant}
    documents.replace(documents.README, "speed", results.summary(max(results.samples), README_COLUMNS, without))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--threads", type=count, nargs="+", default=[2], help="of a pass (default: 2)")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, metavar="NAME", default=[*CONTENDERS], help="(default: all)"
    )
    parser.add_argument("--size", choices=SIZES, default="gpt2", help="others than gpt2 are measured as with --quick")
    parser.add_argument("--quick", action="store_true", help="decode at 32 and prefill of 512 alone")
    parser.add_argument(
        "--output", type=Path, default=PLACE / "results.json", help="JSON (default: build/bench/results.json)"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw decode and prefill as bars")
    parser.add_argument("--docs", action="store_true", help="put the tables into README.md and docs/benchmarks.md")
    parser.epilog = f"names: {', '.join(CONTENDERS)}"
    return parser.parse_args()


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def measure_all(results: Results, given: argparse.Namespace, shape: dict[str, Any]) -> None:
    """Make everyone ready, then all rounds; the file is written after each."""
    folders = prepare_all(given.only, given.size, results)
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
        for threads in given.threads:
            run_round(results, folders, threads, number, given.size, shape)
        results.write(given.output)


def prepare_all(names: list[str], size: str, results: Results) -> dict[str, Path]:
    """The folders of those who can take part, their quality and the others' reasons in the results."""
    folders = {}
    for name in names:
        try:
            check(name)
            folders[name] = prepare(name, size)
        except RuntimeError as error:
            give_up(results, name, error)
            continue
        if name == OURS:
            results.notes.append(f"{CONTENDERS[name].title}: {built_as(folders[name])}")
        try:
            results.quality[CONTENDERS[name].title] = quality.columns(name)
        except RuntimeError as error:
            give_up(results, name, error, "quality of ")
    return folders


def built_as(folder: Path) -> str:
    """What the build did for a model, in words, from its quality.json."""
    found = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    said = ["verified" if found["verified"] else "not verified"]
    said.append("equalized and calibrated" if found["calibrated"] else "not calibrated")
    products = ", ".join(found["upgraded"]) or "none"
    return f"{', '.join(said)}; products with a more exact kernel: {products}"


def run_round(
    results: Results, folders: dict[str, Path], threads: int, number: int, size: str, shape: dict[str, Any]
) -> None:
    """A turn of each contender; every other round in reverse."""
    results.add(threads, BANDWIDTH, {BANDWIDTH: (bandwidth := read_bandwidth(threads))})
    for name in list(folders)[:: -1 if number % 2 else 1]:
        start = time.monotonic()
        try:
            measured = take_turn(name, folders[name], threads, number, size, shape)
        except RuntimeError as error:
            give_up(results, name, error)
            del folders[name]
            continue
        print(f"  {threads} threads, {name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        measured["share"] = measured["decode 32"] * bytes_a_token(CONTENDERS[name], size) / bandwidth
        results.add(threads, CONTENDERS[name].title, measured)


def take_turn(name: str, folder: Path, threads: int, number: int, size: str, shape: dict[str, Any]) -> dict[str, float]:
    """All measures of one contender, once."""
    contender, prompt = CONTENDERS[name], list(range(1000 + number, 1032 + number))
    common = {"folder": str(folder), "threads": threads}
    sizes = {"vocab_size": SIZES[size].vocab_size, "seed": number}
    measured: dict[str, float] = ask(contender, "measure", **common, **sizes, **shape)
    cold, _ = timed_answer(contender, "generate", prompts=[prompt], **common)  # second: the files are in memory
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return measured | {"cold": cold, "disk": disk}


def bytes_a_token(contender: Contender, size: str) -> float:
    """The weights that a decoding step reads: all matrices but the positions, and of the embedding one row alone."""
    config = SIZES[size]
    layers, output = 12 * config.n_layer * config.n_embd**2, config.vocab_size * config.n_embd
    return layers * contender.bytes[0] + output * contender.bytes[1]


def give_up(results: Results, name: str, error: RuntimeError, part: str = "") -> None:
    """Go on without a contender, or a part of its measures."""
    title = part + CONTENDERS[name].title
    results.missing[title] = str(error)
    print(f"missing: {title}: {error}", file=sys.stderr, flush=True)


def machine() -> str:
    """Processor and system, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = (line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name"))
        name = next(models, f": {name}").split(":", 1)[1].strip()
    return f"{name}, {platform.system()}, Python {platform.python_version()}"


def draw(results: Path, picture: Path) -> None:
    """Run plot.py in an environment that has matplotlib."""
    try:
        command = [str(environment(PLOT)), str(HERE / "plot.py"), str(results), str(picture)]
    except RuntimeError as error:
        print(f"no picture: {error}", file=sys.stderr)
    else:
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
