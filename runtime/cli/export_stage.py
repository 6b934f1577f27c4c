"""`gpt2-edge build`: the export stage, which the runtime never imports, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import runtime

BUILD = "build"
HOW_TO_GET_IT = (
    "Building needs a clone of the repository: no wheel has the export stage. In the clone, pip install -e "
    "'.[export-light]' installs the stage and this command (make demo does, too), and a built folder runs wherever the "
    "runtime is installed."
)


def find_build_script() -> Path | None:
    """export/build.py beside the `runtime` that runs, None where there is only a wheel.

    Another package of the name `export` is somebody else's, so that no path is searched.
    """
    package = getattr(runtime, "__file__", None)
    if package is None:
        return None
    script = Path(package).resolve().parents[1] / "export" / "build.py"
    return script if script.is_file() else None


def run_build_script(script: Path, arguments: Sequence[str]) -> int:
    """Run the build with this Python and these arguments; returns its exit status.

    On POSIX the build takes the place of this process and nothing is returned: signals and exit status are its own.
    Raises RuntimeError where this Python cannot be started again, OSError if starting it fails.
    """
    if not sys.executable:
        raise RuntimeError(f"this Python does not know its own program; run python {script}")
    command = [sys.executable, str(script), *arguments]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    return _wait(command)


def _wait(command: Sequence[str]) -> int:
    """Run a command on Windows. Ctrl-C goes to every process of the console: the build ends, and says so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.call(command)
    finally:
        signal.signal(signal.SIGINT, before)
