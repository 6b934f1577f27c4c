"""The source distributions, and the metadata of all that may be published."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.building import QUICK, REPOSITORY, run
from tests.support.wheels import DEMO, RUNTIME, SERVER, build_wheel

PROJECTS = (RUNTIME, SERVER, DEMO)
LICENCE = (REPOSITORY / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def clone(demo_int8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as git has it, and what `make demo` and other builds leave there."""
    ignored = shutil.ignore_patterns(".[!g]*", ".git", "__pycache__", "build", "dist", "*-int8", "*-fp32")
    target = Path(shutil.copytree(REPOSITORY, tmp_path_factory.mktemp("clone") / "clone", ignore=ignored))
    shutil.copytree(demo_int8_folder, target / "models" / "demo-int8")
    left = target / "models" / "mine-int8"
    left.mkdir()
    (left / "model.onnx").touch()
    return target


@pytest.fixture(scope="module")
def sdists(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The runtime's, the server's and the demo's."""
    return [build_sdist(clone / project, tmp_path_factory.mktemp("sdist")) for project in PROJECTS]


@pytest.fixture(scope="module")
def unpacked(sdists: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [unpack(sdist, tmp_path_factory.mktemp("unpacked")) for sdist in sdists]


def build_sdist(project: Path, target: Path) -> Path:
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", target, cwd=project)
    assert done.returncode == 0, done.stderr
    (sdist,) = target.glob("*.tar.gz")
    return sdist


def unpack(sdist: Path, target: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder


def test_the_runtimes_holds_what_its_commands_need(unpacked: list[Path], tmp_path: Path) -> None:
    folder = unpacked[0]
    assert {path.name for path in (folder / "models").iterdir()} == {"demo"}
    needed = ("Makefile", "locks/dev.txt", "docs/licences.md", "tests/conftest.py", "runtime/server/pyproject.toml")
    for name in (*needed, "packages/demo/hatch_build.py", "Dockerfile"):
        assert (folder / name).is_file(), name
    command = [sys.executable, "export/build.py", "models/demo", *QUICK, "--output", str(tmp_path / "demo-int8")]
    done = run(*command, cwd=folder, env={"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    done = run(sys.executable, "-m", "runtime", "check", str(tmp_path / "demo-int8"), cwd=folder)
    assert done.stdout.startswith("ok: "), done.stderr


def test_wheels_of_the_sdists_are_those_of_the_clone(clone: Path, unpacked: list[Path], tmp_path: Path) -> None:
    for project, folder in zip(PROJECTS, unpacked, strict=True):
        first = build_wheel(clone / project, tmp_path / "of the clone")
        second = build_wheel(folder, tmp_path / "of the sdist")
        assert second.read_bytes() == first.read_bytes()


def test_runtime_and_server_hold_the_licence(clone: Path, sdists: list[Path], tmp_path: Path) -> None:
    assert (REPOSITORY / SERVER / "LICENSE").read_bytes() == LICENCE
    for project, sdist in zip((RUNTIME, SERVER), sdists[:2], strict=True):
        with tarfile.open(sdist) as archive:
            file = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/LICENSE")
            assert file is not None
            assert file.read() == LICENCE
        with zipfile.ZipFile(build_wheel(clone / project, tmp_path / "wheels")) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
            assert wheel.read(name) == LICENCE


def test_the_metadata_is_fit_to_publish(clone: Path, sdists: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("twine")
    wheels = [build_wheel(clone / project, tmp_path / "wheels") for project in PROJECTS]
    done = run(sys.executable, "-m", "twine", "check", "--strict", *sdists, *wheels, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheels_hold_nothing_odd(clone: Path, tmp_path: Path) -> None:
    pytest.importorskip("check_wheel_contents")
    for project in PROJECTS:
        wheel = build_wheel(clone / project, tmp_path / "wheels")
        # W004: a module that cannot be imported. PyInstaller wants its hook to have such a name.
        ignored = ["--ignore", "W004"] if project == RUNTIME else []
        done = run(sys.executable, "-m", "check_wheel_contents", "--no-config", *ignored, wheel, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
