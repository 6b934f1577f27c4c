"""Every size of GPT-2 on this machine: `make bench-sizes`.

Builds random weights of each size (`--no-reference --verify none`), then loads and decodes them, each in a process
of its own, and prints a Markdown table. gpt2-xl takes 10 GB of disk for a while; the folders are deleted as it goes.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from export.checkpoint.random_weights import SIZES
from tests.benchmarks.contenders import CONTENDERS, OURS, ask
from tests.benchmarks.worker import N_LONG

PLACE = Path(__file__).resolve().parents[2] / "build" / "sizes"
VOCAB_SIZE, TURNS = 50257, 3
# A GPT has a context of 512, and takes no part.
MEASURED = [size for size, config in SIZES.items() if config.n_positions > N_LONG]
MEGABYTE = 1e6 / (1 if sys.platform == "darwin" else 1024)  # ru_maxrss: bytes on macOS, KiB elsewhere


def main() -> None:
    """Print the table, a row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"of {', '.join(MEASURED)} (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a pass (default: 2)")
    given = parser.parse_args()
    if unknown := sorted(set(given.sizes) - set(MEASURED)):
        parser.error(f"{unknown[0]} is none of {', '.join(MEASURED)}")
    print(
        "| size | build | build, peak memory | folder | load | prefill of 512 | decode at 32 | at 900 "
        "| peak memory at 1,000 |\n|---|---|---|---|---|---|---|---|---|"
    )
    for size in given.sizes or MEASURED:
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
    m = measure(folder, threads)
    shutil.rmtree(folder)
    return (
        f"| {size} | {seconds:.0f} s | {build_peak / MEGABYTE / 1000:.2f} GB | {megabytes:.0f} MB | {m['load']:.2f} s "
        f"| {m['prefill 512']:.2f} s | {m['decode 32']:.1f} tok/s | {m['decode 900']:.1f} tok/s "
        f"| {m['peak'] / 1e9:.2f} GB |"
    )


def measure(folder: Path, threads: int) -> dict[str, float]:
    """Medians of the measures of a turn, each turn in a process of its own."""
    turns = [
        ask(
            CONTENDERS[OURS],
            "measure",
            folder=str(folder),
            threads=threads,
            vocab_size=VOCAB_SIZE,
            seed=seed,
            prefills=[512],
            decodes=[32, 900],
            batches=[],
            n_new=32,
        )
        for seed in range(TURNS)
    ]
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


if __name__ == "__main__":
    main()
