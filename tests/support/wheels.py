"""The project's three wheels, built from copies of the clone and installed without a network."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.building import REPOSITORY, run

# Where in the clone each has its pyproject.toml.
RUNTIME = Path()
SERVER = Path("runtime", "server")
DEMO = Path("packages", "demo")


def copy_clone(target: Path) -> Path:
    """What wheels are built from, without what a build or a test leaves in a clone."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "models", "build", "dist", "tests")
    return Path(shutil.copytree(REPOSITORY, target, ignore=ignored))


def add_demo(clone: Path, demo_int8: Path) -> None:
    """What the demo's wheel has from outside of its folder: the built model, and its card."""
    shutil.copytree(demo_int8, clone / "models" / "demo-int8")
    (clone / "models" / "demo").mkdir()
    shutil.copyfile(REPOSITORY / "models" / "demo" / "README.md", clone / "models" / "demo" / "README.md")


def build_wheel(project: Path, wheels: Path, env: Mapping[str, str] | None = None) -> Path:
    """The wheel of a folder with a pyproject.toml; skips the test where there is no pip."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    before = set(wheels.glob("*.whl"))
    done = run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", wheels, project, cwd=project, env=env)
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    assert done.returncode == 0, done.stderr
    (wheel,) = set(wheels.glob("*.whl")) - before
    return wheel


def install(wheel: Path, python: Path) -> None:
    """Put the wheel into another environment."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    done = run(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=python.parent)
    assert done.returncode == 0, done.stderr
