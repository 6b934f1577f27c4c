"""Every size of GPT-2 on this machine: `make bench-sizes`.

Builds random weights of each size (`--no-reference --verify none`), then loads and decodes them, each in a process
of its own, and prints a Markdown table. gpt2-xl takes 10 GB of disk for a while; the folders are deleted as it goes.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from export.random_checkpoint import SIZES
from runtime.generation import prefill
from runtime.model import Model

PLACE = Path(__file__).resolve().parents[2] / "build" / "sizes"
N_CONTEXT, N_DECODED, N_PREFILL, ROUNDS = 1000, 32, 512, 3
MEGABYTE = 1e6 / (1 if sys.platform == "darwin" else 1024)  # ru_maxrss: bytes on macOS, KiB elsewhere


def main() -> None:
    """Print the table, a row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"of {', '.join(SIZES)} (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a pass (default: 2)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.threads)))
        return
    print(
        "| size | build | build, peak memory | folder | load | prefill of 512 | decode at 32 | at 900 "
        "| peak memory at 1,000 |\n|---|---|---|---|---|---|---|---|---|"
    )
    for size in given.sizes or SIZES:
        print(row(size, given.threads), flush=True)


def row(size: str, threads: int) -> str:
    """Build and measure one size."""
    folder = PLACE / size
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    build = ["export/build.py", f"random:{size}", "--no-reference", "--verify", "none", "--output", str(folder)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    seconds, build_peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    command = [sys.executable, "-m", "tests.benchmarks.sizes", "--measure", str(folder), "--threads", str(threads)]
    m = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    shutil.rmtree(folder)
    return (
        f"| {size} | {seconds:.0f} s | {build_peak / MEGABYTE / 1000:.2f} GB | {megabytes:.0f} MB | {m['load']:.2f} s "
        f"| {m['prefill']:.2f} s | {m['short']:.1f} tok/s | {m['long']:.1f} tok/s | {m['peak']:.2f} GB |"
    )


def measure(folder: Path, threads: int) -> dict[str, float]:
    """Medians of load, prefill and decode, and the peak memory of the process, GB."""
    start = time.perf_counter()
    model = Model(folder, threads=threads)
    load = time.perf_counter() - start
    ids = np.random.default_rng(0).integers(0, 50256, N_CONTEXT).tolist()
    prefills, shorts, longs = [], [], []
    for _ in range(ROUNDS):
        cache = model.new_cache(N_CONTEXT)
        start = time.perf_counter()
        prefill(cache, ids[:N_PREFILL])
        prefills.append(time.perf_counter() - start)
        prefill(cache, ids[:32])
        shorts.append(decode_rate(cache, ids))
        prefill(cache, ids[:900])
        longs.append(decode_rate(cache, ids))
    prefill(cache, ids)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE / 1000
    rates = {"prefill": prefills, "short": shorts, "long": longs}
    return {"load": load, "peak": peak} | {name: statistics.median(values) for name, values in rates.items()}


def decode_rate(cache: object, ids: list[int]) -> float:
    """Tokens per second of N_DECODED steps."""
    start = time.perf_counter()
    for id_ in ids[:N_DECODED]:
        cache.step([id_])  # type: ignore[attr-defined]
    return N_DECODED / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
