"""One turn of one contender, in a process and an environment of its own.

Reads a JSON object on standard input and writes one on standard output. It is run by path and imports nothing of the
project; `peers/` lies beside it. The object names a `task` (convert, generate, logits or measure), a `peer` (a module
of peers/) and the arguments of the task, a function below. Times are in seconds, memory in bytes, contexts in tokens.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

N_PROMPT = 32  # of a row, where several are decoded together
N_LONG = 1000  # the context after which memory is read
NO_OPTIONS: Mapping[str, str] = {}


class Timing(NamedTuple):
    """One generation."""

    prefill: float  # seconds to the first token
    rate: float  # tokens per second after it; 0 where there is no other
    cpu: float  # seconds of all threads for a token


def main() -> None:
    """Do what is asked; what libraries print goes to standard error."""
    given = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        peer = importlib.import_module(f"peers.{given.pop('peer')}")
        tasks = {"convert": convert, "generate": generate, "logits": logits, "measure": measure}
        task = tasks[given.pop("task")]
        json.dump(task(peer, **given), answer)
    os._exit(0)  # what a library does to shut down is not measured, and may hang


def convert(peer: Any, source: str, folder: str, **options: Any) -> None:
    """Write the peer's own form of the weights."""
    peer.convert(Path(source), Path(folder), **options)


def generate(
    peer: Any, folder: str, threads: int, prompts: list[list[int]], options: Mapping[str, str] = NO_OPTIONS
) -> list[int]:
    """The first greedy id after each prompt. options: of `Peer`, as in all tasks."""
    model, ids = peer.Peer(Path(folder), threads, **options), list[int]()
    for prompt in prompts:
        model.generate(prompt, 1, ids.append)
    return ids


def logits(
    peer: Any,
    folder: str,
    threads: int,
    windows: list[list[int]],
    target: str,
    options: Mapping[str, str] = NO_OPTIONS,
) -> tuple[int, int]:
    """Write the logits, or log-probabilities, at every id of every window to a file, in fp32; returns its shape."""
    model, n_rows, n_vocab = peer.Peer(Path(folder), threads, **options), 0, 0
    with Path(target).open("wb") as file:
        for ids in windows:
            found = model.logits(ids)
            if len(found) != len(ids):
                raise ValueError(f"the logits at {len(ids)} ids were asked for, and {len(found)} came")
            file.write(found.astype("float32").tobytes())
            n_rows, n_vocab = n_rows + len(found), found.shape[1]
    return n_rows, n_vocab


def measure(
    peer: Any,
    folder: str,
    threads: int,
    vocab_size: int,
    seed: int,
    prefills: list[int],
    decodes: list[int],
    batches: list[int],
    n_new: int,
    n_long: int = N_LONG,
    options: Mapping[str, str] = NO_OPTIONS,
) -> dict[str, float]:
    """Every measure of a turn by its name, such as `decode 32`.

    prefills, decodes: contexts, each with a prompt of its own, since some peers cache what they have seen;
    batches: numbers of rows; n_new: tokens of a generation; n_long: the context after which memory is read.
    """
    source = random.Random(seed)
    start = time.perf_counter()
    model = peer.Peer(Path(folder), threads, **options)
    result = {"load": time.perf_counter() - start}
    timed(model, prompt_of(n_long, vocab_size, source), 2)
    if peak := peak_memory():
        result["peak"] = peak
    timed(model, prompt_of(N_PROMPT, vocab_size, source), 8)  # warm-up
    for n in sorted({*prefills, *decodes}):
        timing = timed(model, prompt_of(n, vocab_size, source), n_new if n in decodes else 1)
        if n in prefills:
            result[f"prefill {n}"] = timing.prefill
        if n in decodes:
            result[f"decode {n}"] = timing.rate
        if n == min(decodes, default=0):
            result["cpu"] = timing.cpu
    for rows in batches if hasattr(model, "generate_rows") else ():
        result[f"rows {rows}"] = throughput(model, rows, n_new, vocab_size, source)
    return result


def timed(model: Any, prompt: list[int], n_new: int) -> Timing:
    """Generate greedily. Raises ValueError where a peer stops early."""
    times, cpu = list[float](), list[float]()

    def note(_: int) -> None:
        times.append(time.perf_counter())
        cpu.append(time.process_time())

    start = time.perf_counter()
    model.generate(prompt, n_new, note)
    if len(times) != n_new:
        raise ValueError(f"{n_new} tokens were asked for, and {len(times)} came")
    n = n_new - 1
    return Timing(times[0] - start, n and n / (times[-1] - times[0]), n and (cpu[-1] - cpu[0]) / n)


def throughput(model: Any, rows: int, n_new: int, vocab_size: int, source: random.Random) -> float:
    """Tokens per second of all rows together; their prefill is timed by itself and taken off."""
    # Warm-up: some peers compile, or allocate, for a number of rows.
    model.generate_rows([prompt_of(N_PROMPT, vocab_size, source) for _ in range(rows)], 2)
    seconds = []
    for n in (1, n_new):
        prompts = [prompt_of(N_PROMPT, vocab_size, source) for _ in range(rows)]
        start = time.perf_counter()
        written = model.generate_rows(prompts, n)
        seconds.append(time.perf_counter() - start)
        if [len(ids) for ids in written] != [n] * rows:
            raise ValueError(f"{rows} rows of {n} ids were asked for, and {[len(ids) for ids in written]} came")
    return rows * (n_new - 1) / (seconds[1] - seconds[0])


def prompt_of(n: int, vocab_size: int, source: random.Random) -> list[int]:
    """Random ids; the last of the vocabulary, which ends a text, is none of them."""
    return [source.randrange(vocab_size - 1) for _ in range(n)]


def peak_memory() -> int | None:
    """The most memory the process ever had resident; None on Windows, which keeps the figure elsewhere."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
