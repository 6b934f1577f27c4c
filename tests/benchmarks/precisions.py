"""Every precision side by side: `make bench-precisions`.

Quality is measured on models/demo against optimum's fp32 export, over the demo's own evaluation text. Speed is that of
random weights of GPT-2 124M: all in one process, alternating, medians compared. The models, one of them optimum's
export after plain `quantize_dynamic`, are built once under build/precisions (3 GB).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import warnings
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from export import build
from export.quantize.precision import BLOCK_SIZES, INT4_BLOCK_SIZES
from export.verify.quality import measure_quality
from tests.benchmarks.peers.edge import Peer
from tests.benchmarks.quick import N_NEW, N_PROMPT, measure
from tests.conftest import DEMO, REPOSITORY

PLACE = REPOSITORY / "build" / "precisions"
DYNAMIC = "optimum, `quantize_dynamic`"
VARIANTS = {
    "fp32": ["--precision", "fp32"],
    **{f"int8, blocks of {size}": ["--block-size", str(size)] for size in BLOCK_SIZES},
    **{f"int4, blocks of {size}": ["--precision", "int4", "--block-size", str(size)] for size in INT4_BLOCK_SIZES},
    "int4, blocks of 32, not calibrated": ["--precision", "int4", "--no-calibration"],
    "int8, dense": ["--kernel", "dense"],
}


def main() -> None:
    """Print the table, a row a precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each model runs (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a pass (default: 2)")
    given = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # some kernel never suits the processor
    demos, larges = make_models(str(DEMO), "demo"), make_models("random:gpt2", "large")
    speeds = speed(larges, given.rounds, given.threads)
    print(f"\nquality: models/demo; speed: GPT-2 124M, {N_NEW} tokens after {N_PROMPT}, prompts of 512")
    print(f"{given.threads} threads, {given.rounds} rounds, medians\n")
    print("| | demo, MB | perplexity | loss, % | top-1, % | mean KL | 124M, MB | decode, tok/s | prefill, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in [*VARIANTS, DYNAMIC]:
        decode, prefill = speeds[name]
        cells = [*quality(demos.get(name)), megabytes(larges[name]), f"{decode:.1f}", f"{prefill:.0f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def make_models(checkpoint: str, place: str) -> dict[str, Path]:
    """Model folders by name; without those whose blocks do not divide the checkpoint's widths."""
    folders = {name: PLACE / place / f"model-{index}" for index, name in enumerate(VARIANTS)}
    for name, folder in list(folders.items()):
        if folder.is_dir():
            continue
        try:
            build.main([checkpoint, "--no-reference", "--verify", "none", "--output", str(folder), *VARIANTS[name]])
        except ValueError as error:
            print(f"{name}: left out, {error}")
            del folders[name]
    return folders | {DYNAMIC: make_dynamic(checkpoint, PLACE / place)}


def make_dynamic(checkpoint: str, place: Path) -> Path:
    """optimum's export, kept as `reference`, after `quantize_dynamic`."""
    reference, partial, dynamic = (place / name for name in ("reference", "partial", "dynamic"))
    if not reference.is_dir():
        keep = ["--keep-reference", str(reference), "--verify", "none", "--output", str(place / "model-0"), "--force"]
        build.main([checkpoint, *VARIANTS["fp32"], *keep])
    if not dynamic.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(reference, partial, ignore=shutil.ignore_patterns("*.onnx*"))
        quantize_dynamic(reference / "model.onnx", partial / "model.onnx", weight_type=QuantType.QInt8)
        partial.rename(dynamic)
    return dynamic


def speed(folders: dict[str, Path], rounds: int, threads: int) -> dict[str, tuple[float, float]]:
    """Medians of the tokens per second and of the milliseconds of a prompt; one runtime, the project's, for all."""
    decode, prefill = measure({name: Peer(folder, threads) for name, folder in folders.items()}, rounds)
    return {name: (statistics.median(decode[name]), 1000 * statistics.median(prefill[name])) for name in folders}


def quality(folder: Path | None) -> list[str]:
    """Size, perplexity, loss, top-1 and KL of a demo, as cells."""
    if folder is None:
        return ["-"] * 5
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:  # Windows deletes no mapped file
        reference = folder.parent / "reference"
        measured = measure_quality(folder, reference, "optimum", DEMO / "evaluation.txt", Path(work))
    return [
        megabytes(folder),
        f"{measured.perplexity:.3f}",
        f"{measured.loss_percent:.3f}",
        f"{100 * measured.top1_agreement:.2f}",
        f"{measured.mean_kl:.5f}",
    ]


def megabytes(folder: Path) -> str:
    """Size of a folder's graph and weights."""
    return f"{sum(path.stat().st_size for path in folder.glob('*.onnx*')) / 1e6:.1f}"


if __name__ == "__main__":
    main()
