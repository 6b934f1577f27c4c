"""Every precision of a checkpoint, built by the build command in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

BUILD = REPOSITORY / "export" / "build.py"
PRECISIONS: dict[str, list[str]] = {
    "int8": [],  # the default
    "int8-block": ["--kernel", "block"],
    "int4": ["--precision", "int4"],
    "fp32": ["--precision", "fp32"],
}


@dataclass(frozen=True)
class Built:
    """A model folder, or why there is none."""

    folder: Path
    seconds: float | None  # of the build; None for a folder that an earlier run built
    refused: str | None = None  # the build's own words


def build(checkpoint: str, precision: str, place: Path, options: Sequence[str], *, reuse: bool) -> Built:
    """Build one precision into `place`; `options` go to the build command as they are.

    reuse: a folder that an earlier run built there is taken as it is.
    """
    folder = place / precision
    if reuse and folder.is_dir():
        return Built(folder, None)
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, str(BUILD), checkpoint, "--output", str(folder), *PRECISIONS[precision], *options]
    start = time.perf_counter()
    status, said = run(command)
    refused = (reason(said) or f"the build ended with status {status}") if status else None
    return Built(folder, time.perf_counter() - start, refused)


def run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command that shows its progress; its exit status, and what it wrote on standard error.

    On Ctrl-C the command is ended, too, and cleans up before this raises KeyboardInterrupt.
    """
    said = bytearray()
    # a session of its own: else a terminal's Ctrl-C would interrupt it a second time while it cleans up
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr
        try:
            pass_on(process, said)
        except KeyboardInterrupt:
            process.terminate()
            pass_on(process, said)
            raise
    return process.returncode, said.decode("utf-8", "replace")


def pass_on(process: subprocess.Popen[bytes], said: bytearray) -> None:
    """Copy the process's standard error to this one's until it ends."""
    assert process.stderr
    # read1 returns what is there: a progress bar has no end of line
    while part := process.stderr.read1(4096):
        said += part
        sys.stderr.write(part.decode("utf-8", "replace"))
        sys.stderr.flush()


def reason(said: str) -> str | None:
    """The build's error, which is its last line that begins with one."""
    lines = [line.strip().partition("error: ") for line in said.splitlines()]
    return next((message for _, found, message in reversed(lines) if found), None)
