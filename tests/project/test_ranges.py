"""The wheel alone with the oldest versions that it allows, and with the newest there are, beside the locked ones."""

from __future__ import annotations

import json
import os
import re
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from export.verify.golden import TOLERANCE
from tests.support import range_report
from tests.support.building import REPOSITORY, run
from tests.support.requirements import asked
from tests.support.wheels import build_wheel, copy_clone

pytestmark = [pytest.mark.slow, pytest.mark.ranges]
SCRIPT = Path(range_report.__file__)
Report = dict[str, Any]


def oldest() -> dict[str, str]:
    """The lower bound of each requirement."""
    return {need.name: bound.version for need in asked() for bound in need.specifier if bound.operator == ">="}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    return build_wheel(copy_clone(place / "clone"), place / "wheels")


@pytest.fixture(scope="module", params=["oldest", "newest"])
def end(request: pytest.FixtureRequest) -> str:
    """Of the range."""
    return str(request.param)


@pytest.fixture(scope="module")
def python(end: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what pip finds for it: at its lower bounds, or without any other bound."""
    folder = tmp_path_factory.mktemp(end)
    venv.create(folder, with_pip=False)
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pins = [f"{name}=={version}" for name, version in oldest().items()] if end == "oldest" else []
    pip = [sys.executable, "-m", "pip", "--python", found, "--disable-pip-version-check"]
    done = run(*pip, "install", "--quiet", "--only-binary", ":all:", wheel, *pins, cwd=folder, timeout=400)
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"the {end} versions cannot be installed here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def folders(demo_fp32_folder: Path, demo_int8_folder: Path) -> tuple[Path, Path]:
    return demo_fp32_folder, demo_int8_folder


@pytest.fixture(scope="module")
def locked(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What the locked versions write."""
    return _report(Path(sys.executable), folders, tmp_path_factory.mktemp("scratch"), str(REPOSITORY))


@pytest.fixture(scope="module")
def report(python: Path, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return _report(python, folders, tmp_path_factory.mktemp("scratch"), "")


def _report(python: Path, folders: tuple[Path, Path], scratch: Path, path: str) -> Report:
    done = run(
        python, SCRIPT, *folders, scratch, cwd=scratch, env={"PYTHONPATH": path, "GPT2_EDGE_CACHE": str(scratch)}
    )
    assert done.returncode == 0, done.stderr
    found: Report = json.loads(done.stdout)
    return found


def test_the_documents_say_what_is_tested(report: Report, end: str) -> None:
    said = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    claims = {name: bounds for name, *bounds in re.findall(r"\b(\w+) (\d[\d.]*\d) to (\d[\d.]*\d)\b", said)}
    for name in oldest():
        low, high = map(Version, claims[name])
        tested = Version(report["versions"][name])
        assert low == Version(oldest()[name])
        assert tested == low if end == "oldest" else tested >= high


def test_the_wheel_is_what_runs(report: Report, locked: Report) -> None:
    assert not Path(report["runtime"]).is_relative_to(REPOSITORY)
    assert Path(locked["runtime"]).is_relative_to(REPOSITORY)


def test_ids_are_those_of_the_locked_versions(report: Report, locked: Report) -> None:
    for way, found in locked["found"].items():
        assert report["found"][way] == found, way


def test_log_probabilities_are_those_of_the_locked_versions(report: Report, locked: Report) -> None:
    for name, value in locked["near"].items():
        assert report["near"][name] == pytest.approx(value, abs=TOLERANCE["int8"] if "int8" in name else 1e-4), name


def test_the_check_passes(report: Report) -> None:
    assert report["failed checks"] == []


def test_the_command_writes(python: Path, demo_fp32_folder: Path, locked: Report, tmp_path: Path) -> None:
    prompt = range_report.PROMPTS[0]
    command = ["generate", prompt, "--model", str(demo_fp32_folder), "--max-new-tokens", "40"]
    done = run(python.with_name("gpt2-edge"), *command, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert done.stdout.rstrip("\r\n") == locked["found"]["greedy"][0][2]
