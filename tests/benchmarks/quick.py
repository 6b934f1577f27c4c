"""Ours against optimum after `quantize_dynamic`: `make bench-quick`.

Same random weights of GPT-2 124M, same process, greedy; the contenders alternate. Exit status 1 where ours, as a
ratio to optimum, has lost a quarter of the committed baseline (baseline.json).

python -m tests.benchmarks.quick --rounds 7
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping

from tests.benchmarks import baseline
from tests.benchmarks.contenders import OURS, prepare
from tests.benchmarks.peers import edge, optimum
from tests.benchmarks.statistic import describe, ratio, table
from tests.benchmarks.worker import prompt_of, timed

N_PROMPT, N_NEW, N_LONG = 32, 128, 512
VOCAB_SIZE = 50257
PEER = "optimum-int8"
Model = edge.Peer | optimum.Peer


def main() -> None:
    """Print a Markdown table: tokens per second and the time of a prompt, ours against the peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender runs (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a pass (default: 2)")
    parser.add_argument("--record", action="store_true", help="make what is measured the baseline")
    given = parser.parse_args()
    ours, peer = edge.Peer(prepare(OURS, "gpt2"), given.threads), optimum.Peer(prepare(PEER, "gpt2"), given.threads)
    decode, prefill = measure({OURS: ours, PEER: peer}, given.rounds)
    print(f"GPT-2 124M, random weights, {N_NEW} tokens after {N_PROMPT}")
    print(f"{given.threads} threads, {given.rounds} rounds, medians (range)\n")
    rows = [[name, describe(decode[name]), describe([1000 * s for s in prefill[name]])] for name in decode]
    print(table(["", "decode, tok/s", f"prefill of {N_LONG}, ms"], rows), "\n")
    print("times as fast as optimum after quantize_dynamic:")
    ratios = {"decode": ratio(decode[OURS], decode[PEER]), "prefill": ratio(prefill[PEER], prefill[OURS])}
    if given.record:
        baseline.record(ratios, given.threads)
    lines, reached = baseline.compare(ratios, given.threads)
    print("\n".join(lines))
    sys.exit(0 if reached else 1)


def measure(models: Mapping[str, Model], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Tokens per second of N_NEW - 1 steps, and seconds of a prompt, per model and round; a first round is warm-up."""
    decode: dict[str, list[float]] = {name: [] for name in models}
    prefill: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        source = random.Random(number)
        short, long = prompt_of(N_PROMPT, VOCAB_SIZE, source), prompt_of(N_LONG, VOCAB_SIZE, source)
        for name, model in models.items():
            rate, seconds = timed(model, short, N_NEW).rate, timed(model, long, 1).prefill
            if number:
                decode[name].append(rate)
                prefill[name].append(seconds)
    return decode, prefill


if __name__ == "__main__":
    main()
