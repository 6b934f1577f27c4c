"""What `make` does before it installs anything: which Python it takes, and what becomes of a half-made environment."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.building import REPOSITORY

pytestmark = pytest.mark.skipif(
    os.name != "posix" or shutil.which("make") is None, reason="needs make and a POSIX shell"
)
# an interpreter that says what it is, notes what it is asked for, and stands for pip and the rest
STUB = """#!/bin/sh
case "$1" in
-c) exec {python} -c "import sys; sys.version_info = {version}; exec(sys.argv[1])" "$2" ;;
esac
echo "$@" >> {log}
exit {status}
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of the repository as make looks at for an environment."""
    place = tmp_path / "clone"
    place.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copyfile(REPOSITORY / name, place / name)
    shutil.copytree(REPOSITORY / "locks", place / "locks")
    return place


def stub(path: Path, version: tuple[int, int, int], status: int = 1) -> Path:
    """A Python of a version; the file beside it holds its command lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = STUB.format(python=sys.executable, version=version, log=path.with_name("log"), status=status)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make(clone: Path, target: str, python: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", target, f"PYTHON={python}"]
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 8, 20), (3, 10, 12)])
def test_an_old_python_is_named_before_anything_is_made(clone: Path, version: tuple[int, int, int]) -> None:
    python = stub(clone.parent / "python", version)
    done = make(clone, "test", python)
    told = (
        f"Python 3.11 or newer is needed, and {python} is {version[0]}.{version[1]}: make test PYTHON=python3.12, say"
    )
    assert done.returncode != 0
    assert told in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert not (clone / ".venv").exists()
    assert not python.with_name("log").exists()


def test_a_half_made_environment_is_replaced(clone: Path) -> None:
    half = clone / ".venv" / "bin" / "python"
    half.parent.mkdir(parents=True)
    half.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")  # has no gpt2-edge
    half.chmod(0o755)
    python = stub(clone.parent / "python", (3, 11, 7))
    assert make(clone, ".venv/dev", python).returncode != 0
    assert python.with_name("log").read_text(encoding="utf-8") == "-m venv --clear .venv\n"


def test_a_complete_environment_is_added_to(clone: Path) -> None:
    """`make test` after `make demo`, say; what answers for the environment here is that of these tests."""
    inner = clone / ".venv" / "bin" / "python"
    inner.parent.mkdir(parents=True)
    inner.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    inner.chmod(0o755)
    python = stub(clone.parent / "python", (3, 11, 7))
    assert make(clone, ".venv/dev", python).returncode != 0
    assert python.with_name("log").read_text(encoding="utf-8") == "-m venv .venv\n"
