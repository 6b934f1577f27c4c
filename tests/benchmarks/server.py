"""The server, its peers and `complete` on the same prompts: `python -m tests.benchmarks.server`.

Eight clients ask at once, each for a stream of greedy text. Measured are the tokens per second of all together, and the
seconds that each waits for its first token. GPT-2 124M with random weights, int8 everywhere: see
`tests.benchmarks.contenders`, whose folders and environments are taken. Servers run in processes of their own, their
clients in this one; contenders alternate, and medians are compared. One that cannot be had is reported as missing.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import runtime
from runtime.tokenization.encode import encode
from tests.benchmarks.bench import count, machine
from tests.benchmarks.contenders import OURS, prepare
from tests.benchmarks.services import SERVICES, Answered, Ask
from tests.benchmarks.statistic import describe, ratio, table
from tests.conftest import DEMO

SIZE = "gpt2"
N_PROMPT = 32
N_NEW = 128
N_CLIENTS = 8
Contender = Callable[[Sequence[str]], list[Answered]]
ROWS = f"`complete`, {N_CLIENTS} rows"
ROW = "`complete`, 1 row"


class Measured:
    """What the rounds of one contender have shown."""

    def __init__(self) -> None:
        self.rates: list[float] = []  # tokens per second, a value a round
        self.first: list[float] = []  # seconds to the first token, a value a request

    def add(self, answered: Sequence[Answered], seconds: float) -> None:
        """A round."""
        self.rates.append(sum(one.n_tokens for one in answered) / seconds)
        self.first += [one.first for one in answered]

    def row(self, title: str) -> list[str]:
        """Cells of the table: the speed, and the median and the 99th percentile of the wait in milliseconds."""
        waits = [wait * 1e3 for wait in self.first if wait]
        shown = [f"{np.percentile(waits, share):.0f}" for share in (50, 99)] if waits else ["-", "-"]
        return [title, describe(self.rates), *shown]


def main() -> None:
    """Print a Markdown table, what is missing, and the shares that are asked for."""
    given = parse()
    # So that the servers end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(runtime.load(prepare(OURS, SIZE), threads=given.threads))
        contenders: dict[str, Contender] = {
            ROWS: lambda prompts: complete(model, prompts),
            ROW: lambda prompts: complete(model, prompts[:1]),
        }
        for name in given.only:
            try:
                ask = stack.enter_context(SERVICES[name].start(prepare(SERVICES[name].weights, SIZE), given.threads))
            except (RuntimeError, OSError) as error:
                missing[SERVICES[name].title] = str(error)
                continue
            contenders |= clients_of(SERVICES[name].title, ask)
        rounds = [read_prompts(model, number) for number in range(given.rounds + 1)]
        found = measure(contenders, rounds, missing)
    print(report(found, missing, given))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=5, help="how often each contender runs (default: 5)")
    parser.add_argument("--threads", type=count, default=2, help="threads of a pass (default: 2)")
    parser.add_argument("--only", nargs="+", choices=SERVICES, default=list(SERVICES), help="(default: all)")
    return parser.parse_args()


def clients_of(title: str, ask: Ask) -> dict[str, Contender]:
    """A service with all clients, and with one."""
    return {
        many(title): lambda prompts: ask(prompts, N_NEW),
        single(title): lambda prompts: ask(prompts[:1], N_NEW),
    }


def many(title: str) -> str:
    """The name of a service with all clients."""
    return f"{title}, {N_CLIENTS} clients"


def single(title: str) -> str:
    """The name of a service with one client."""
    return f"{title}, 1 client"


def read_prompts(model: runtime.Model, number: int) -> list[str]:
    """Pieces of a real text, others in every round, so that no cache of prompts helps."""
    ids = encode(model, (Path(DEMO) / "evaluation.txt").read_text(encoding="utf-8"))
    begins = range(number * N_CLIENTS * N_PROMPT, (number + 1) * N_CLIENTS * N_PROMPT, N_PROMPT)
    return [model.tokenizer.decode(ids[begin : begin + N_PROMPT]) for begin in begins]


def complete(model: runtime.Model, prompts: Sequence[str]) -> list[Answered]:
    """The same rows without a server; nobody waits for a first token."""
    options = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "batch_size": N_CLIENTS}
    done = runtime.complete(list(prompts), model=model, **options)
    return [Answered(0.0, one.n_tokens) for one in done]


def measure(
    contenders: dict[str, Contender], rounds: Sequence[Sequence[str]], missing: dict[str, str]
) -> dict[str, Measured]:
    """What each contender shows; the first round is warm-up. One that fails is missing from then on."""
    found = {title: Measured() for title in contenders}
    for number, prompts in enumerate(rounds):
        for title in [title for title in contenders if title not in missing]:
            start = time.perf_counter()
            try:
                answered = contenders[title](prompts)
            except (RuntimeError, OSError) as error:
                missing[title] = str(error)
                continue
            seconds = time.perf_counter() - start
            print(f"round {number}, {title}: {seconds:.2f} s", file=sys.stderr, flush=True)
            if number:
                found[title].add(answered, seconds)
    return {title: one for title, one in found.items() if title not in missing}


def report(found: dict[str, Measured], missing: dict[str, str], given: argparse.Namespace) -> str:
    """The table, who is missing, and how the server compares."""
    head = ["", "tok/s", "first token, median ms", "99th percentile ms"]
    parts = [
        f"GPT-2 124M, random weights, {N_NEW} tokens after {N_PROMPT}, {given.threads} threads, medians (range) of "
        f"{given.rounds} rounds\n{machine()}",
        table(head, [one.row(title) for title, one in found.items()]),
        *(f"missing: {title}: {reason}" for title, reason in missing.items()),
        *shares(found),
    ]
    return "\n\n".join(parts)


def shares(found: dict[str, Measured]) -> list[str]:
    """Our server beside `complete` and every peer with as many clients, as ratios of the same rounds."""
    own = SERVICES["gpt2-edge"].title
    lines = []
    for clients, rows in ((many(own), ROWS), (single(own), ROW)):
        rivals = [rows, *(title for title in found if title.endswith(clients.removeprefix(own)) and title != clients)]
        lines += [
            f"- {clients}: {ratio(found[clients].rates, found[title].rates):.2f} times {title}"
            for title in rivals
            if clients in found and title in found
        ]
    if many(own) in found and single(own) in found:
        gain = ratio(found[many(own)].rates, found[single(own)].rates)
        lines.append(f"- {many(own)}: {gain:.2f} times one client")
    return ["\n".join(lines)] if lines else []


if __name__ == "__main__":
    main()
