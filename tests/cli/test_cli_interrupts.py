"""Ctrl-C at any moment: while modules are imported, while the command works, while the interpreter ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.command_line import environment, posix_only

# raises SIGINT as soon as a module is looked for, then runs the command
AT_IMPORT = """
import runpy, signal, sys
name = sys.argv.pop(1)
class Interrupting:
    def find_spec(self, wanted, *_):
        if wanted == name:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
runpy.run_module("runtime", run_name="__main__", alter_sys=True)
"""
AT_EXIT = """
import atexit, signal, sys
from runtime.__main__ import main
atexit.register(signal.raise_signal, signal.SIGINT)
sys.exit(main())
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=environment(folder),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@posix_only
@pytest.mark.parametrize(
    "name", ["runtime.cli.parser", "numpy", "onnxruntime", "tokenizers", "runtime.diagnostics.info"]
)
def test_an_interrupt_in_imports_is_130(demo_fp32_folder: Path, name: str) -> None:
    done = run(demo_fp32_folder, "-c", AT_IMPORT, name, "info")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@posix_only
def test_an_interrupt_at_the_end_is_no_traceback(demo_fp32_folder: Path) -> None:
    done = run(demo_fp32_folder, "-c", AT_EXIT, "info", "--json")
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.endswith("}\n")
