"""The server among clients that mean it ill: `python -m tests.trials.server`.

`gpt2-edge serve` runs in a process of its own, watched: its memory, threads and files, what it writes and whom it
connects to. While it is abused, one client asks for the same text again and again and has to get it. Bounded load on
127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.trials import abuse
from tests.trials.abuse import Outcomes
from tests.trials.memory import build_models
from tests.trials.table import Row, record
from tests.trials.watched import AUDIT

Stage = Callable[[int, int], Outcomes]
STAGES: dict[str, tuple[int, Stage]] = {  # what it says in the table: how often, and how
    "requests that drip, a byte at a time": (192, partial(abuse.each, abuse.drip)),
    "requests cut at every byte": (1000, partial(abuse.each, abuse.half)),
    "bodies without end": (64, partial(abuse.each, abuse.endless)),
    "replies that are not read": (64, partial(abuse.each, abuse.unread)),
    "connections held at once": (2000, abuse.hold),
    "wrong types and values in every field": (5000, abuse.mistype),
    "forms that are hard to keep": (
        200,
        partial(abuse.each, abuse.form, at_a_time=4),
    ),  # rows: others wait in the queue
    "clients gone at every stage": (2000, partial(abuse.each, abuse.leave)),
}
N_SIGNALS, N_STREAMS = 40, 4
FINE = re.compile(r"opened|left|given up|done|[1234]\d\d")  # not 5xx, nor what was held
MOST_MEMORY, MOST_THREADS, SLOWEST = 300e6, 3, 60.0  # more than at first, in bytes and threads; seconds
SETTINGS = ("--client-timeout", "2", "--timeout", "30", "--grace", "5")


@dataclasses.dataclass
class Trial:
    """What was tried, and what happened."""

    what: str
    count: int
    outcomes: Outcomes
    memory: float = 0.0  # bytes above the first, at most
    threads: int = 0  # likewise
    served: int = 0  # right answers to the client that means well
    slowest: float = 0.0
    wrong: list[str] = dataclasses.field(default_factory=list)

    @property
    def row(self) -> Row:
        """For the table of all trials."""
        told = [f"{n:,} {outcome}" for outcome, n in sorted(self.outcomes.items()) if n]
        if self.served:
            told.append(f"meanwhile {self.served} right answers to another, the slowest in {self.slowest:.1f} s")
            told.append(f"at most {self.memory / 1e6:.0f} MB and {self.threads} threads more")
        return Row(self.what, self.count, "; ".join([*told, *self.wrong]))


def main() -> int:
    """Print a row a trial; returns 1 where something was not as it has to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the counts, from 0 to 1 (default: 1)")
    parser.add_argument("--folder", type=Path, help="model folder (default: the demo, built)")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and the server would
    print("| tried | how often | what happened |\n|---|---|---|")
    trials = []
    for trial in try_all(given.folder or next(iter(build_models())), given.share):
        print("| {} | {:,} | {} |".format(*trial.row), flush=True)
        trials.append(trial)
    record("server", [trial.row for trial in trials])
    return int(any(trial.wrong for trial in trials))


def try_all(folder: Path, share: float) -> Iterator[Trial]:
    """Every stage on one server, then signals on others."""
    with serving(folder) as server:
        expected = ask(server.port)
        first = server.figures()
        for what, (count, stage) in STAGES.items():
            trial = Trial(what, max(1, round(count * share)), Outcomes())
            with Bystander(server, expected, trial):
                trial.outcomes = stage(server.port, trial.count)
            check(trial, server, first)
            yield trial
    yield try_signals(folder, max(2, round(N_SIGNALS * share)))


@dataclasses.dataclass
class Server:
    """The command as it runs."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def figures(self) -> tuple[int, int]:
        """Bytes in memory, and threads."""
        told = psutil.Process(self.process.pid)
        return told.memory_info().rss, told.num_threads()

    def is_idle(self) -> bool:
        """Whether nothing runs, waits or is connected, but for who asks."""
        lines = get(self.port, "/metrics").splitlines()
        connected = psutil.Process(self.process.pid).net_connections()
        n_open = sum(one.status == psutil.CONN_ESTABLISHED for one in connected)
        open_rows = [line for line in lines if line.startswith(("gpt2_edge_running{", "gpt2_edge_waiting{"))]
        return len(open_rows) == 2 and all(line.endswith(" 0.0") for line in open_rows) and n_open <= 1

    def audited(self) -> list[str]:
        """What it did that it had no business with."""
        return [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.startswith(AUDIT)]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The command, watched, on a free port; killed afterwards if it is still there."""
    with tempfile.TemporaryDirectory() as place, (Path(place) / "log").open("wb") as log:
        command = ["-m", "tests.trials.watched", "serve", "--model", str(folder), "--port", "0", *SETTINGS]
        process = subprocess.Popen([sys.executable, *command], stderr=log)
        try:
            yield Server(process, wait_for_port(Path(log.name), process), Path(log.name))
        finally:
            process.kill()
            process.wait()


def wait_for_port(log: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that the server says it listens on."""
    while process.poll() is None:
        if found := re.search(r"at http://127\.0\.0\.1:(\d+) ", log.read_text("utf-8")):
            return int(found[1])
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text('utf-8')}")


def get(port: int, path: str, body: dict[str, Any] | None = None) -> str:
    """The reply. Raises OSError for one that is no success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SLOWEST)
    with contextlib.closing(connection):
        sent = json.dumps(body) if body else None
        connection.request("POST" if body else "GET", path, sent, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read().decode()
        if reply.status != 200:
            raise OSError(f"{reply.status}: {text}")
        return text


def ask(port: int) -> list[int]:
    """The ids of a sampled continuation."""
    body = {"prompt": "The old king had", "max_tokens": 24, "seed": 7, "min_new_tokens": 24}
    ids: list[int] = json.loads(get(port, "/v1/completions", body))["choices"][0]["gpt2_edge"]["ids"]
    return ids


class Bystander(threading.Thread):
    """Asks for the same again and again, and again where it is told to come back; reads the server's figures."""

    def __init__(self, server: Server, expected: list[int], trial: Trial) -> None:
        super().__init__(daemon=True)
        self._server, self._expected, self._trial, self._is_over = server, expected, trial, threading.Event()
        self._first = server.figures()

    def run(self) -> None:
        """Until the abuse is over, and once at least."""
        while not (self._trial.served and self._is_over.is_set()) and not self._trial.wrong:
            start, ids = time.monotonic(), None
            while ids is None and time.monotonic() < start + SLOWEST:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    ids = ask(self._server.port)
            self._note(ids, time.monotonic() - start)

    def _note(self, ids: list[int] | None, seconds: float) -> None:
        trial, (memory, threads) = self._trial, self._server.figures()
        if ids != self._expected:
            trial.wrong.append(f"ANOTHER GOT {ids} after {seconds:.0f} s")
        trial.served, trial.slowest = trial.served + (ids == self._expected), max(trial.slowest, seconds)
        trial.memory = max(trial.memory, memory - self._first[0])
        trial.threads = max(trial.threads, threads - self._first[1])

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()


def check(trial: Trial, server: Server, first: tuple[int, int]) -> None:
    """Note what is not as it has to be, once all is over."""
    end = time.monotonic() + SLOWEST
    while not (idle := server.is_idle()) and time.monotonic() < end:
        time.sleep(0.1)
    memory, threads = server.figures()
    wrong = {
        "WORK OR CONNECTIONS LEFT": not idle,
        "OUTCOMES": any(not FINE.match(outcome) for outcome, n in trial.outcomes.items() if n),
        f"{(memory - first[0]) / 1e6:.0f} MB LEFT": memory - first[0] > MOST_MEMORY or trial.memory > MOST_MEMORY,
        f"{threads - first[1]} THREADS LEFT": max(threads - first[1], trial.threads) > MOST_THREADS,
    }
    trial.wrong += [told for told, is_wrong in wrong.items() if is_wrong] + server.audited()


def try_signals(folder: Path, count: int) -> Trial:
    """A signal in the middle of several streams, to a server of its own each time."""
    if os.name != "posix":
        return Trial("signals in the middle of streams", 0, Counter({"POSIX only": 1}))
    trial = Trial("signals in the middle of streams", count, Outcomes())
    for index in range(count):
        with serving(folder) as server:
            streams = [abuse.connect(server.port) for _ in range(N_STREAMS)]
            with contextlib.ExitStack() as stack:
                for stream in streams:
                    stack.enter_context(stream).sendall(abuse.request(**abuse.LONG, stream=True))
                read = [stream.recv(4096) for stream in streams]
                number = (signal.SIGTERM, signal.SIGINT)[index % 2]
                server.process.send_signal(number)
                ends = [abuse.read_end(stream) for stream in streams]
            code = server.process.wait(SLOWEST)
            is_whole = all(read) and all(b"data: [DONE]" in end for end in ends)
            is_clean = code == (130 if number is signal.SIGINT else -number) and not server.audited()
            trial.outcomes["done" if is_whole and is_clean else f"CODE {code}"] += 1
    trial.wrong += [outcome for outcome in trial.outcomes if outcome != "done"]
    return trial


if __name__ == "__main__":
    sys.exit(main())
