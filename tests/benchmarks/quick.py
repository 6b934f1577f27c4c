"""Ours against optimum after `quantize_dynamic`: `make bench-quick`.

Same random weights of GPT-2 124M, same process, greedy; the contenders alternate, and medians are compared.
The models are built once under build/bench.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from optimum.onnxruntime import ORTModelForCausalLM

from export import build
from runtime.generation import prefill
from runtime.model import Model

PLACE = Path(__file__).resolve().parents[2] / "build" / "bench"
N_PROMPT, N_NEW = 32, 128
Contender = Callable[[list[int], int], object]  # prompt ids, number of new ids


def main() -> None:
    """Print a Markdown table: tokens per second and the time of a prompt, ours against the peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender runs (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a pass (default: 2)")
    given = parser.parse_args()
    ours, dynamic = make_models()
    contenders = {"gpt2-edge int8": edge(ours, given.threads), "optimum int8": optimum(dynamic, given.threads)}
    print(f"GPT-2 124M, random weights, {N_NEW} tokens after {N_PROMPT}")
    print(f"{given.threads} threads, {given.rounds} rounds\n")
    print("| | decode, tok/s | spread | prefill of 512, ms | spread |\n|---|---|---|---|---|")
    decode, prefill = measure(contenders, given.rounds)
    for name in contenders:
        rates = [(N_NEW - 1) / seconds for seconds in decode[name]]
        print(f"| {name} | {describe(rates)} | {describe([1000 * seconds for seconds in prefill[name]])} |")
    peer, own = (statistics.median(decode[name]) for name in reversed(contenders))
    print(f"\ndecode: {peer / own:.2f} times as fast as optimum after quantize_dynamic")


def make_models() -> tuple[Path, Path]:
    """Our folder, and optimum's export of the same weights after `quantize_dynamic`."""
    ours, reference, dynamic = (PLACE / name for name in ("random-gpt2-int8", "reference", "dynamic"))
    if not dynamic.is_dir():
        shutil.rmtree(PLACE, ignore_errors=True)
        build.main(["random:gpt2", "--output", str(ours), "--keep-reference", str(reference), "--verify", "none"])
        shutil.copytree(reference, PLACE / "partial", ignore=shutil.ignore_patterns("*.onnx*"))
        quantize_dynamic(reference / "model.onnx", PLACE / "partial" / "model.onnx", weight_type=QuantType.QInt8)
        (PLACE / "partial").rename(dynamic)
    return ours, dynamic


def measure(contenders: dict[str, Contender], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of N_NEW - 1 decoding steps, and of a prompt of 512, per contender and round; the first is warm-up."""
    decode: dict[str, list[float]] = {name: [] for name in contenders}
    prefill: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        short, long = (np.random.default_rng(number).integers(0, 50256, n).tolist() for n in (N_PROMPT, 512))
        for name, contender in contenders.items():
            times = timed(contender, short, 1), timed(contender, short, N_NEW), timed(contender, long, 1)
            if number:
                decode[name].append(times[1] - times[0])
                prefill[name].append(times[2])
    return decode, prefill


def timed(contender: Contender, prompt: list[int], n_new: int) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    contender(prompt, n_new)
    return time.perf_counter() - start


def edge(folder: Path, threads: int) -> Contender:
    """The runtime of the project."""
    model = Model(folder, threads=threads)

    def run(prompt: list[int], n_new: int) -> object:
        cache = model.new_cache(len(prompt) + n_new)
        ids = [int(prefill(cache, prompt).argmax())]
        while len(ids) < n_new:
            ids.append(int(cache.step(ids[-1:])[0].argmax()))
        return ids

    return run


def optimum(folder: Path, threads: int) -> Contender:
    """optimum's own generation."""
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)

    def run(prompt: list[int], n_new: int) -> object:
        return model.generate(
            torch.tensor([prompt]), max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, pad_token_id=50256
        )

    return run


def describe(values: list[float]) -> str:
    """Median, and the range."""
    return f"{statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f}"


if __name__ == "__main__":
    main()
