"""How speed changes with context, rows, size and threads: `make bench-growth`.

The int8 default in every size of GPT-2 that fits the memory, random weights: decode and prefill at 32 to 1,000 tokens,
1 to 64 rows, each measured in a process of its own, with 1 and 2 threads. The physical limit is measured in the same
run: read bandwidth, and the peak of int8 products. Writes build/bench/growth.json after each turn, so Ctrl-C keeps what
was measured, then prints tables and draws a picture each of decode, prefill and rows.

Models are built once under build/bench/growth: 10 minutes for all, up to 9 GB of disk on the way and 4 GB afterwards.
A round takes about 20 minutes with all sizes, of which gpt2-xl takes half.

python -m tests.benchmarks.growth --sizes distilgpt2 gpt2 --rounds 5 --pictures docs
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runtime
from export.checkpoint.random_weights import SIZES
from export.checkpoint.random_weights import write as write_random
from export.needs import free_memory
from tests.benchmarks import documents, limits
from tests.benchmarks.bandwidth import read_bandwidth
from tests.benchmarks.bench import PLOT, count, machine
from tests.benchmarks.contenders import CHECKPOINT, CONTENDERS, HERE, OURS, PLACE, ask, environment
from tests.benchmarks.statistic import describe, table
from tests.conftest import DEMO, REPOSITORY

CONTEXTS = (32, 128, 256, 512, 768, 1000)
ROWS = (1, 2, 4, 8, 16, 32, 64)
N_ROW = 32  # tokens of a prompt where several rows are decoded; worker.py has it too
N_NEW = 24
FOLDERS = PLACE / "growth"
MEASURES = ("decode", "prefill", "rows")
ABOUT = {
    "growth-decode.png": "Decode by context, size and threads, with the physical limit",
    "growth-prefill.png": "Prefill by length of the prompt, size and threads, with the physical limit",
    "growth-rows.png": "Decode of several rows by their number, size and threads, with the physical limit",
}
# A GPT has too few positions for the longest contexts.
LONG = [size for size, config in SIZES.items() if config.n_positions >= max(CONTEXTS) + N_NEW]
Growth = dict[str, Any]


def main() -> None:
    """Measure, then print, draw and document what there is; status 130 after Ctrl-C."""
    given = parse()
    found: Growth = {"machine": machine(), "rounds": given.rounds, "cache": given.cache}
    found |= {"contexts": CONTEXTS, "rows": ROWS, "samples": {}, "limits": {}, "machine_limits": {}, "missing": {}}
    status = 0
    try:
        measure_all(found, given)
    except KeyboardInterrupt:
        print("interrupted: the tables have what was measured", file=sys.stderr)
        status = 130
    write(found, given.output)
    text = markdown(found)
    print(text)
    if found["samples"] and given.pictures:
        draw(given.output, given.pictures)
    if found["samples"] and given.docs:
        documents.replace(documents.BENCHMARKS, "growth", "\n\n".join([*links(given.pictures), text]))
    sys.exit(status)


def links(pictures: Path | None) -> list[str]:
    """The pictures beside the page."""
    names = [f"growth-{measure}.png" for measure in MEASURES]
    folder = documents.BENCHMARKS.parent
    is_beside = (
        pictures is not None and pictures.resolve() == folder and all((folder / name).is_file() for name in names)
    )
    return [f"![{ABOUT[name]}]({name})" for name in names] if is_beside else []


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=LONG, default=LONG, metavar="SIZE", help="(default: all)")
    parser.add_argument("--threads", type=count, nargs="+", default=[1, 2], help="of a pass (default: 1 2)")
    parser.add_argument("--rounds", type=count, default=3, help="turns of each size (default: 3)")
    parser.add_argument(
        "--cache", choices=limits.POSITION_BYTES, default="int8", help="of keys and values (default: int8)"
    )
    parser.add_argument(
        "--output", type=Path, default=PLACE / "growth.json", help="JSON (default: build/bench/growth.json)"
    )
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw growth-decode.png and its like there")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.epilog = f"sizes: {', '.join(LONG)}"
    return parser.parse_args()


def measure_all(found: Growth, given: argparse.Namespace) -> None:
    """All rounds; sizes and threads take turns, in an order that alternates."""
    folders = dict(ready(found, given.sizes))
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
        for threads in given.threads:
            note_limits(found, threads)
            for size in list(folders)[:: -1 if number % 2 else 1]:
                take_turn(found, size, folders[size], threads, number, given.cache)
                write(found, given.output)


def ready(found: Growth, sizes: list[str]) -> Iterator[tuple[str, Path]]:
    """The model folders of the sizes that can be built and fit the memory."""
    for size in sizes:
        try:
            folder = build(size)
        except RuntimeError as error:
            found["missing"][size] = str(error)
        else:
            needed = runtime.estimate(folder, context=N_ROW + N_NEW, rows=max(ROWS)).total
            free = free_memory()
            if free is None or needed < free:
                yield size, folder
                continue
            found["missing"][size] = f"it needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB is free"
        print(f"missing: {size}: {found['missing'][size]}", file=sys.stderr, flush=True)


def build(size: str) -> Path:
    """The folder of a size, built once: random weights, calibrated on the demo's text, since noise writes none.

    Raises RuntimeError with the reason in one line where the build fails.
    """
    folder = FOLDERS / size
    if folder.is_dir():
        return folder
    print(f"building {size}", file=sys.stderr, flush=True)
    FOLDERS.mkdir(parents=True, exist_ok=True)
    kept, written = PLACE / size / CHECKPOINT, FOLDERS / f"{size}-checkpoint"
    shutil.rmtree(written, ignore_errors=True)
    try:
        if not kept.is_dir():
            write_random(size, written)
        command = [sys.executable, "export/build.py", str(kept if kept.is_dir() else written), "--no-reference"]
        command += ["--verify", "none", "--calibration-text", str(DEMO / "evaluation.txt"), "--output", str(folder)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, errors="replace", check=False)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(f"it cannot be built: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return folder


def note_limits(found: Growth, threads: int) -> None:
    """Measure the machine."""
    measured = found["machine_limits"].setdefault(str(threads), {"bandwidth": [], "peak": []})
    measured["bandwidth"].append(read_bandwidth(threads))
    measured["peak"].append(limits.int8_peak(threads))


def take_turn(found: Growth, size: str, folder: Path, threads: int, number: int, cache: str) -> None:
    """Every measure of one size, once; a size that fails is given up."""
    if size in found["missing"]:
        return
    start = time.monotonic()
    shape = {"prefills": CONTEXTS, "decodes": CONTEXTS, "batches": ROWS, "n_new": N_NEW}
    options = {"options": {"cache": cache}}
    given = {"folder": str(folder), "threads": threads, "vocab_size": SIZES[size].vocab_size, "seed": number}
    try:
        measured = ask(CONTENDERS[OURS], "measure", **given, **shape, **options)
    except RuntimeError as error:
        found["missing"][size] = str(error)
        print(f"missing: {size}: {error}", file=sys.stderr, flush=True)
        return
    kept = found["samples"].setdefault(str(threads), {}).setdefault(size, {})
    for measure, value in measured.items():
        kept.setdefault(measure, []).append(value)
    print(f"  {threads} threads, {size}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def write(found: Growth, path: Path) -> None:
    """Replace the file in one step, with the limits of what was measured."""
    found["limits"] = {
        threads: {size: limits_of(found, size, threads) for size in sizes}
        for threads, sizes in found["samples"].items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def limits_of(found: Growth, size: str, threads: str) -> dict[str, float]:
    """The limit of each measure by its name, such as `decode 32`."""
    config, measured = SIZES[size], found["machine_limits"][threads]
    bandwidth, peak = (statistics.median(measured[name]) for name in ("bandwidth", "peak"))
    at = {}
    for n in CONTEXTS:
        at[f"decode {n}"] = limits.decode_limit(config, n, 1, found["cache"], bandwidth, peak)
        at[f"prefill {n}"] = limits.prefill_limit(config, n, bandwidth, peak)
    for rows in ROWS:
        at[f"rows {rows}"] = limits.decode_limit(config, N_ROW, rows, found["cache"], bandwidth, peak)
    return at


def markdown(found: Growth) -> str:
    """A table for each measure and number of threads; in brackets the share of the limit."""
    parts = [
        f"gpt2-edge int8, random weights, {found['cache']} cache, medians of {found['rounds']} rounds, in brackets the "
        f"share of the physical limit. {found['machine']}."
    ]
    for threads, sizes in found["samples"].items():
        measured = found["machine_limits"][threads]
        said = f"{threads} thread{'s' if threads != '1' else ''}"
        bandwidth = describe([value / 1e9 for value in measured["bandwidth"]], 1)
        peak = describe([value / 1e9 for value in measured["peak"]])
        parts.append(f"{said}: read bandwidth {bandwidth} GB/s, int8 products {peak} billion a second.")
        parts += [_table(found, sizes, threads, measure, said) for measure in MEASURES]
    parts += [f"Missing: {size}: {reason}" for size, reason in found["missing"].items()]
    return "\n\n".join(parts)


HEADS = {"decode": "decode, tok/s, at", "prefill": "prefill, ms, of", "rows": "all rows, tok/s, rows:"}


def _table(found: Growth, sizes: dict[str, dict[str, list[float]]], threads: str, measure: str, said: str) -> str:
    points = ROWS if measure == "rows" else CONTEXTS
    rows = []
    for size, samples in sizes.items():
        cells = [_cell(samples, found["limits"][threads][size], f"{measure} {point}") for point in points]
        rows.append([size, *cells])
    return table([f"{said}: {HEADS[measure]}", *(f"{point:,}" for point in points)], rows)


def _cell(samples: dict[str, list[float]], limit: dict[str, float], name: str) -> str:
    """`282 (78 %)`; `-` where it was not measured."""
    if name not in samples:
        return "-"
    median = statistics.median(samples[name])
    is_seconds = name.startswith("prefill")
    share = limit[name] / median if is_seconds else median / limit[name]
    shown = 1e3 * median if is_seconds else median
    return f"{shown:.0f} ({share:.0%})".replace("%", " %")


def draw(results: Path, pictures: Path) -> None:
    """Run growth_plot.py in an environment that has matplotlib."""
    try:
        command = [str(environment(PLOT)), str(HERE / "growth_plot.py"), str(results), str(pictures)]
    except RuntimeError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    else:
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
