"""The server against `complete`: `python -m tests.benchmarks.server`.

GPT-2 124M with random weights, int8 dense, greedy. The server runs in a process of its own, as users have it, its
clients in this one; contenders alternate, and medians are compared. The model is built once under build/bench.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import runtime
from export import build
from runtime.tokenization.encode import encode

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "bench" / "random-gpt2-dense"
N_PROMPT, N_NEW, N_CLIENTS = 32, 128, 8
Prompts = list[str]  # texts, since `complete` takes no ids: the same tokens for all
Contender = Callable[[Prompts], int]  # how many tokens were written


def main() -> None:
    """Print a Markdown table of tokens per second, and the two shares that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a pass (default: 2)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends too
    with runtime.load(build_model(), threads=given.threads) as model, serving(given.threads) as port:
        contenders: dict[str, Contender] = {
            f"`complete`, {N_CLIENTS} rows": lambda prompts: complete(model, prompts),
            f"server, {N_CLIENTS} clients": lambda prompts: ask_all(port, prompts, stream=False),
            f"server, {N_CLIENTS} clients, streams": lambda prompts: ask_all(port, prompts, stream=True),
            "`complete`, 1 row": lambda prompts: complete(model, prompts[:1]),
            "server, 1 client": lambda prompts: ask_all(port, prompts[:1], stream=False),
        }
        rates = measure(contenders, [read_prompts(model, number) for number in range(given.rounds + 1)])
    print(f"GPT-2 124M, random weights, {N_NEW} tokens after {N_PROMPT}, {given.threads} threads\n")
    print("| | tok/s | spread |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f} |")
    rows, clients, streams, row, one = (statistics.median(values) for values in rates.values())
    print(f"\n{N_CLIENTS} clients: {clients / rows:.0%} of `complete` ({streams / rows:.0%} streamed), ", end="")
    print(f"{clients / one:.2f} times one client; {N_CLIENTS} rows: {rows / row:.2f} times one row")


def build_model() -> Path:
    """The model folder, built where it is not there."""
    if not FOLDER.is_dir():
        how = ["--kernel", "dense", "--no-reference", "--verify", "none"]
        build.main(["random:gpt2", "--output", str(FOLDER), *how])
    return FOLDER


def read_prompts(model: runtime.Model, number: int) -> Prompts:
    """Pieces of a real text, others in every round."""
    ids = encode(model, (REPOSITORY / "models" / "demo" / "evaluation.txt").read_text(encoding="utf-8"))
    begins = range(number * N_CLIENTS * N_PROMPT, (number + 1) * N_CLIENTS * N_PROMPT, N_PROMPT)
    return [model.tokenizer.decode(ids[begin : begin + N_PROMPT]) for begin in begins]


def measure(contenders: dict[str, Contender], rounds: list[Prompts]) -> dict[str, list[float]]:
    """Tokens per second, per contender and round; the first round is warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number, prompts in enumerate(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            rate = contender(prompts) / (time.perf_counter() - start)
            print(f"round {number}, {name}: {rate:.0f} tok/s", file=sys.stderr)
            if number:
                rates[name].append(rate)
    return rates


def complete(model: runtime.Model, prompts: Prompts) -> int:
    """The same rows without a server."""
    done = runtime.complete(prompts, model=model, max_new_tokens=N_NEW, batch_size=N_CLIENTS)
    return sum(one.n_tokens for one in done)


def ask_all(port: int, prompts: Prompts, *, stream: bool) -> int:
    """Every prompt by a client of its own, at the same time."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return sum(pool.map(lambda prompt: ask(port, prompt, stream=stream), prompts))


def ask(port: int, prompt: str, *, stream: bool) -> int:
    """One request."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = {"prompt": prompt, "max_tokens": N_NEW, "temperature": 0, "stream": stream}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse().read()
    last = reply.split(b"\n\n")[-3].removeprefix(b"data: ") if stream else reply
    return len(json.loads(last)["choices"][0]["gpt2_edge"]["ids"])


@contextlib.contextmanager
def serving(threads: int) -> Iterator[int]:
    """The command on a free port."""
    command = [sys.executable, "-m", "runtime", "serve", "--model", str(FOLDER), "--port", "0"]
    process = subprocess.Popen([*command, "--threads", str(threads)], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    found = re.search(r":(\d+) ", process.stderr.readline())
    assert found
    try:
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


if __name__ == "__main__":
    main()
