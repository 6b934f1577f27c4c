"""Who answers several clients at once, each in a process of its own, as users have it.

A service is started with a folder of weights and a number of threads, and answers rounds of prompts that come together.
What cannot be had is a RuntimeError with the reason in one line, as in `tests.benchmarks.contenders`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.benchmarks.contenders import CONTENDERS, HERE, OURS, environment

START_SECONDS = 300.0  # for a server to load its model
END_OF_TEXT = "50256"  # GPT-2's, which must not end a text before its last token


class Answered(NamedTuple):
    """What one client saw."""

    first: float  # seconds from the request to the first token
    n_tokens: int


Ask = Callable[[Sequence[str], int], list[Answered]]
"""Answers prompts that come together, each with so many new tokens, greedy."""


@dataclass(frozen=True)
class Service:
    """A way to serve GPT-2 to several clients."""

    title: str
    weights: str  # a contender, whose weights and environment it takes
    start: Callable[[Path, int], AbstractContextManager[Ask]]


@contextlib.contextmanager
def serve_ours(folder: Path, threads: int) -> Iterator[Ask]:
    """`gpt2-edge serve`."""
    command = [sys.executable, "-m", "runtime", "serve", "--model", str(folder), "--port", "0", "--verify", "size"]
    with running([*command, "--threads", str(threads)], stderr=subprocess.PIPE) as process:
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r":(\d+) ", line)
        if not found:
            raise RuntimeError(f"it does not start: {line.strip()}")
        yield over_http(int(found[1]))


@contextlib.contextmanager
def serve_llama_cpp(folder: Path, threads: int) -> Iterator[Ask]:
    """llama-cpp-python's server. It decodes one request at a time; by default a new one would end the one before."""
    port = free_port()
    arguments = {
        "model": folder / "model.gguf",
        "host": "127.0.0.1",
        "port": port,
        "n_ctx": 1024,
        "n_threads": threads,
        "n_threads_batch": threads,
        "interrupt_requests": "false",
        "verbose": "false",
    }
    given = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        python = str(environment(CONTENDERS["llama.cpp-q8_0"]))
        with running([python, "-m", "llama_cpp.server", *given], stdout=log, stderr=log) as process:
            wait_for(port, process, log)
            yield over_http(port, logit_bias={END_OF_TEXT: -100.0})


@contextlib.contextmanager
def serve_openvino(folder: Path, threads: int) -> Iterator[Ask]:
    """OpenVINO GenAI's continuous batching, which is a pipeline in Python: no HTTP between it and its clients."""
    python = str(environment(CONTENDERS["openvino-int8"]))
    # -P: the script's own folder has an openvino.py.
    command = [python, "-P", str(HERE / "peers" / "openvino_service.py"), str(folder), str(threads)]
    tokenizer = str(folder.parent / "checkpoint" / "tokenizer.json")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        with running([*command, tokenizer], **pipes) as process:
            if next(iter(process.stdout or ()), "") != "ready\n":
                raise RuntimeError(f"it does not start: {last_line(log)}")
            yield over_lines(process, log)


SERVICES = {
    "gpt2-edge": Service("gpt2-edge serve, int8", OURS, serve_ours),
    "llama.cpp": Service("llama-cpp-python's server, Q8_0", "llama.cpp-q8_0", serve_llama_cpp),
    "openvino": Service("OpenVINO GenAI's continuous batching, int8", "openvino-int8", serve_openvino),
}


# over HTTP ----------------------------------------------------------------------------------------------------------


def over_http(port: int, **fields: Any) -> Ask:
    """Asks a server with OpenAI's protocol: a client, and a connection, for each prompt."""

    def ask(prompts: Sequence[str], n_new: int) -> list[Answered]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: ask_one(port, prompt, n_new, fields), prompts))

    return ask


def ask_one(port: int, prompt: str, n_new: int, fields: dict[str, Any]) -> Answered:
    """One request, streamed. Raises RuntimeError for a text that ended early: its tokens could not be counted."""
    body = {"prompt": prompt, "max_tokens": n_new, "temperature": 0, "stream": True, **fields}
    start = time.perf_counter()
    first = 0.0
    reason = None
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(f"it replies {reply.status}: {reply.read()[:200]!r}")
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            first = first or time.perf_counter() - start
            choices = json.loads(line.removeprefix(b"data: ")).get("choices") or [{}]
            reason = choices[0].get("finish_reason") or reason
    if reason != "length":
        raise RuntimeError(f"a text ended by {reason!r}, not by its length")
    return Answered(first, n_new)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[str], log: IO[str]) -> None:
    """Return once a server answers. Raises RuntimeError where it ends, or does not answer in time."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as asked:
            asked.request("GET", "/v1/models")
            if asked.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"it does not start: {last_line(log)}")


# over lines ---------------------------------------------------------------------------------------------------------


def over_lines(process: subprocess.Popen[str], log: IO[str]) -> Ask:
    """Asks a process that reads a line of JSON for each round, and writes one."""

    def ask(prompts: Sequence[str], n_new: int) -> list[Answered]:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"prompts": list(prompts), "n_new": n_new}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"it has ended: {last_line(log)}")
        return [Answered(*one) for one in json.loads(line)]

    return ask


@contextlib.contextmanager
def running(command: Sequence[str], **pipes: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, which is ended at the end."""
    with subprocess.Popen(command, text=True, encoding="utf-8", **pipes) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def last_line(log: IO[str]) -> str:
    """The last line that a process has written."""
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return (lines or ["it says nothing"])[-1][:300]
