"""The command `gpt2-edge` while others read, interrupt or close its streams."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.command_line import environment, posix_only


@pytest.fixture
def start(demo_fp32_folder: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """The command under way, its output in pipes."""

    def start_command(*arguments: str, shell: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runtime", *arguments]
        script = ["sh", "-c", f'exec "$@" {shell}', "sh", *command] if shell else command
        pipe = subprocess.PIPE
        env = environment(demo_fp32_folder)
        return subprocess.Popen(script, stdin=pipe, stdout=pipe, stderr=pipe, cwd=REPOSITORY, env=env)

    return start_command


@posix_only
def test_a_reader_that_leaves_is_no_traceback(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    with start("generate", "Once", "--max-new-tokens=400") as process:
        assert process.stdout and process.stderr
        assert len(process.stdout.read(5)) == 5
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@posix_only
def test_an_interrupt_is_130(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    with start("generate", "Once", "--max-new-tokens=500") as process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 130


@posix_only
@pytest.mark.parametrize("shell", ["<&-", ">&-", ">/dev/full"])
def test_a_stream_that_is_closed_or_full_is_no_traceback(
    start: Callable[..., subprocess.Popen[bytes]], shell: str
) -> None:
    if shell == ">/dev/full" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with start("generate", "-" if shell == "<&-" else "Once", shell=shell) as process:
        message = process.communicate()[1].decode()
    assert "Traceback" not in message
    assert "Exception ignored" not in message
    assert process.returncode == (0 if shell == ">&-" else 1)
