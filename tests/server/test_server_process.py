"""The command `gpt2-edge serve`: what it says, what it refuses, how it ends, and what it leaves alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.cli import parser as cli
from runtime.model.model import Model
from runtime.server_settings import KEY_VARIABLE, Settings
from tests.conftest import REPOSITORY
from tests.support.building import run
from tests.support.environment import make_environment, required

pytest.importorskip("fastapi", reason="the server is an extra: pip install 'gpt2-edge[server]'")
posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
Start = Callable[..., tuple["subprocess.Popen[str]", int]]
LONG = {"prompt": "Once upon a time", "max_tokens": 500, "min_new_tokens": 500}


@pytest.fixture
def start(demo_int8_folder: Path) -> Iterator[Start]:
    """The command on a free port, once it listens; killed afterwards if it is still there."""
    started = []

    def start_command(*arguments: str, before: str = "", **env: str) -> tuple[subprocess.Popen[str], int]:
        script = f"import sys\n{before}\nfrom runtime.cli.parser import main\nsys.exit(main())"
        command = [sys.executable, "-c", script, "serve", "--model", str(demo_int8_folder), "--port", "0", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **env}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        started.append(process)
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"at http://127\.0\.0\.1:(\d+) ", line)
        assert found, line + process.stderr.read()
        return process, int(found[1])

    yield start_command
    for process in started:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def ask(port: int, **fields: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json", "Connection": "close"}  # the reply then owns the socket
    connection.request("POST", "/v1/completions", json.dumps(fields), headers)
    return connection.getresponse()


# how it ends -------------------------------------------------------------------------------------------------------


@posix_only
def test_a_second_signal_ends_what_runs(start: Start) -> None:
    process, port = start("--grace", "60")
    reply = ask(port, **LONG, stream=True)
    reply.readline()
    process.send_signal(signal.SIGINT)
    assert process.stderr
    assert "60 s to finish; a second signal ends" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert b'"finish_reason":"length"' not in reply.read()
    assert (process.wait(20), process.stderr.read()) == (130, "")


@posix_only
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_signal_lets_what_runs_finish(start: Start, number: signal.Signals, status: int) -> None:
    process, port = start("--grace", "60")
    reply = ask(port, **LONG, stream=True)
    first = reply.readline()
    process.send_signal(number)
    rest = first + reply.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"length"' in rest
    assert process.wait(20) == status
    assert "Traceback" not in (process.communicate()[1] or "")


@posix_only
@pytest.mark.parametrize("n_signals", [1, 2])
def test_signals_are_heard_where_standard_error_is_gone(demo_int8_folder: Path, n_signals: int) -> None:
    """As of `gpt2-edge serve 2>&1 | tee log`, where Ctrl-C ends tee first."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "runtime", "serve", "--model", demo_int8_folder, "--port", "0", "--grace", "60"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stderr=writing, env=environment) as process:
        os.close(writing)
        told = b""
        while b"Ctrl-C" not in told:
            told += os.read(reading, 4096)
        port = int(told.split(b" (")[0].rpartition(b":")[2])
        reply = ask(port, **LONG, stream=True)
        reply.readline()
        os.close(reading)
        for _ in range(n_signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert reply.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(30) == -signal.SIGTERM


@posix_only
def test_after_the_grace_streams_end_with_an_error(start: Start) -> None:
    """Sixteen rows on one slot take much longer than the grace."""
    process, port = start("--grace", "0.2", "--rows", "1")
    reply = ask(port, **{**LONG, "prompt": ["Once"] * 16}, stream=True)
    reply.readline()
    process.send_signal(signal.SIGTERM)
    start_time = time.monotonic()
    *_, last, done, _ = reply.read().split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert done == b"data: [DONE]"
    assert process.wait(20) == -signal.SIGTERM
    assert time.monotonic() - start_time < 10


@posix_only
def test_nobody_new_is_let_in_after_a_signal(start: Start) -> None:
    process, port = start("--grace", "60")
    reply = ask(port, **LONG, stream=True)
    reply.readline()
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(ConnectionResetError), pytest.raises(ConnectionRefusedError):
        while process.poll() is None:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            time.sleep(0.02)
    reply.read()


@posix_only
@pytest.mark.parametrize("client", ["none", "half a request", "a client that does not read"])
def test_a_signal_ends_it_whoever_is_connected(start: Start, client: str) -> None:
    process, port = start("--grace", "0.2", "--client-timeout", "1")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if client != "none":
            other.connect(("127.0.0.1", port))
            body = json.dumps({**LONG, "stream": True, "logprobs": 20, "n": 4}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            head += "Content-Type: application/json\r\n\r\n"
            other.sendall(head.encode()[:30] if client == "half a request" else head.encode() + body)
            time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


# what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "--allow-no-key"),
        (["--host", "::"], KEY_VARIABLE),
        (["--host", "example.org"], "may be reached by others"),
        (["--port", "70000"], "at most 65535"),
        (["--rows", "0"], "rows is 0"),
        (["--max-tokens", "-1"], "max_tokens is -1"),
        (["--timeout", "0"], "timeout is 0"),
        (["--timeout", "nan"], "timeout is nan"),
        (["--api-key", ""], "not empty"),
        (["--api-key", "abc "], "begin or end with a space"),
        (["--api-key", " "], "begin or end with a space"),
        (["--api-key", "clé"], "ASCII"),
    ],
)
def test_what_cannot_be_is_refused(demo_int8_folder: Path, arguments: list[str], told: str) -> None:
    command = [sys.executable, "-m", "runtime", "serve", "--model", demo_int8_folder, *arguments]
    process = run(*command, cwd=REPOSITORY)
    assert process.returncode == 2, process.stderr
    assert told in process.stderr
    assert "Traceback" not in process.stderr


def test_several_models_are_served_by_name(start: Start, demo_int8_folder: Path) -> None:
    _, port = start("--model", str(demo_int8_folder), "--alias", "a", "--alias", "b")
    for fields, name in (({}, "a"), ({"model": "b"}, "b")):
        assert json.loads(ask(port, prompt="Once", max_tokens=1, **fields).read())["model"] == name
    reply = ask(port, prompt="Once", model=demo_int8_folder.name)
    assert reply.status == 404
    assert "'a', 'b' are served" in json.loads(reply.read())["error"]["message"]


def test_an_empty_key_in_the_environment_is_an_error(demo_int8_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that was not mounted, say: nobody means to serve everybody so."""
    command = [sys.executable, "-m", "runtime", "serve", "--model", demo_int8_folder, "--port", "0"]
    process = run(*command, cwd=REPOSITORY, env={KEY_VARIABLE: ""})
    assert process.returncode == 2, process.stderr
    assert f"${KEY_VARIABLE} is empty" in process.stderr


def test_a_port_that_is_taken_is_named(demo_int8_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--model", str(demo_int8_folder), "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"port {port}" in said
    assert "--port 0" in said


def test_without_the_extra_it_is_named(demo_int8_folder: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", required())
    command = [python, "-m", "runtime", "serve", "--model", demo_int8_folder]
    done = run(*command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 1
    assert "pip install 'gpt2-edge[server]'" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert Settings(host=host).is_local


def test_a_key_or_a_word_opens_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Settings(host="0.0.0.0", api_key="swordfish").is_local
    assert not Settings(host="0.0.0.0", allow_no_key=True).is_local


def test_a_plain_export_decodes_one_at_a_time(demo_reference: Model) -> None:
    from tests.support.serving import running

    with running(demo_reference) as server:
        assert server.engine.n_rows == 1
        text = server.post(prompt="Once", max_tokens=5, temperature=0).json["choices"][0]["text"]
    assert text == runtime.generate("Once", model=demo_reference, max_new_tokens=5)
    with pytest.raises(ValueError, match="one row at a time"), running(demo_reference, rows=2):
        pass


# what it leaves alone ----------------------------------------------------------------------------------------------

WATCH = """
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getnameinfo"):
        sys.stderr.write(f"{event} {arguments}\\n")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        sys.stderr.write(f"{event} {arguments}\\n")
import runtime.server.transport.listener
serve = runtime.server.transport.listener.serve
def watched(*arguments, **options):
    sys.addaudithook(watch)
    serve(*arguments, **options)
runtime.server.transport.listener.serve = watched
"""


@posix_only
def test_it_connects_nowhere_and_writes_no_file(start: Start) -> None:
    process, port = start("--grace", "5", before=WATCH)
    for fields in ({}, {"stream": True}, {"task": "answer"}, {"echo": True, "logprobs": 1}, {"prompt": 5}):
        ask(port, **{"prompt": "Once", **fields}).read()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] == ""


def test_importing_the_runtime_loads_no_server(tmp_path: Path) -> None:
    code = "import sys, runtime, runtime.cli.parser; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    foreign = ["fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "jinja2", "asyncio"]
    done = subprocess.run(
        [sys.executable, "-c", code, *foreign],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    assert done.stdout.strip() == "[]"
