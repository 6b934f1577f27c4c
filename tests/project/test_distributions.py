"""What an index would get: `python -m build` makes it, twine accepts it, and it works in empty environments.

On every Python that pyproject.toml names and this machine has, with the versions that pip finds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import runtime
from runtime.model.model import Model
from tests.support.building import REPOSITORY, run
from tests.support.interpreters import VERSIONS, find_interpreter
from tests.support.optional import optional
from tests.support.wheels import DEMO, RUNTIME, SERVER, add_demo, copy_clone

pytestmark = pytest.mark.slow
PROMPT = "Once upon a time"
NEW_TOKENS = 24
NOTICE = "gpt2-edge: no model is named, so the demo answers: gpt2-edge-demo"


@pytest.fixture(scope="module")
def distributions(demo_int8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The three source distributions and the three wheels that `python -m build` makes of them."""
    # A part of `build`: that name could be a folder of the clone.
    optional("pyproject_hooks")
    place = tmp_path_factory.mktemp("distributions")
    clone = copy_clone(place / "clone")
    (clone / "tests").mkdir()
    add_demo(clone, demo_int8_folder)
    for project in (RUNTIME, SERVER, DEMO):
        command = ["-m", "build", "--no-isolation", "--outdir", place / "dist", clone / project]
        done = run(sys.executable, *command, cwd=place)
        assert done.returncode == 0, done.stderr
    return sorted((place / "dist").iterdir())


@pytest.fixture(scope="module")
def text(demo_int8: Model) -> str:
    """What the demo writes in the locked environment."""
    return runtime.generate(PROMPT, model=demo_int8, max_new_tokens=NEW_TOKENS)


def make_empty(folder: Path, interpreter: Path) -> Path:
    """A new environment of an interpreter; returns its python."""
    done = run(interpreter, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install_from_index(python: Path, paths: Sequence[Path], *options: str) -> None:
    """Files and what they require. Skips where there is no index of packages, but in continuous integration."""
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    done = run(*pip, "install", "--quiet", "--no-compile", *options, *paths, cwd=python.parent, timeout=400)
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"cannot be installed here: {done.stderr}")
    assert done.returncode == 0, done.stderr


def run_bare(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command as on a fresh machine: no variable names a model, a module or a cache."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GPT2_EDGE", "PYTHON"))}
    env |= {"HOME": str(cwd), "GPT2_EDGE_CACHE": str(cwd / "cache")}
    words = list(map(str, command))
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


def check_environment(python: Path, text: str, place: Path) -> None:
    """Assert that the command and the functions write with the demo, and that the server imports."""
    done = run_bare(python.with_name("gpt2-edge"), "generate", PROMPT, "--max-new-tokens", str(NEW_TOKENS), cwd=place)
    assert (done.returncode, done.stdout) == (0, f"{text}\n"), done.stderr
    assert done.stderr.startswith(NOTICE)
    assert done.stderr.count("\n") == 1
    code = f"import runtime; print(runtime.generate({PROMPT!r}, max_new_tokens={NEW_TOKENS}))"
    done = run_bare(python, "-c", code, cwd=place)
    assert (done.returncode, done.stdout) == (0, f"{text}\n"), done.stderr
    done = run_bare(python.with_name("gpt2-edge"), "--version", cwd=place)
    assert done.stdout == f"gpt2-edge {runtime.__version__}\n"
    done = run_bare(python.with_name("gpt2-edge"), "build", "gpt2", cwd=place)
    assert done.returncode == 1
    assert "Building needs a clone" in done.stderr
    done = run_bare(python, "-c", "import runtime.server.transport.listener", cwd=place)
    assert done.returncode == 0, done.stderr


def test_twine_accepts_all(distributions: list[Path], tmp_path: Path) -> None:
    optional("twine")
    assert len(distributions) == 6
    done = run(sys.executable, "-m", "twine", "check", "--strict", *distributions, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_wheels_work_on_every_python(version: str, distributions: list[Path], text: str, tmp_path: Path) -> None:
    interpreter = find_interpreter(version)
    if interpreter is None:
        # Which versions a machine has is not for a test to ask, with CI=true either.
        pytest.skip(f"this machine has no Python {version}")
    python = make_empty(tmp_path / "environment", interpreter)
    wheels = [path for path in distributions if path.suffix == ".whl"]
    install_from_index(python, wheels, "--only-binary", ":all:")
    check_environment(python, text, tmp_path)


def test_source_distributions_work(distributions: list[Path], text: str, tmp_path: Path) -> None:
    python = make_empty(tmp_path / "environment", Path(sys.executable))
    sdists = [path for path in distributions if path.suffix == ".gz"]
    install_from_index(python, sdists, "--prefer-binary")
    check_environment(python, text, tmp_path)


def test_the_versions_are_those_that_onnxruntime_serves() -> None:
    """What is said is what is tested: every Python from the lower bound on."""
    lowest = VERSIONS[0]
    assert f'requires-python = ">={lowest}"' in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    minors = [int(version.split(".")[1]) for version in VERSIONS]
    assert minors == list(range(minors[0], minors[-1] + 1))
