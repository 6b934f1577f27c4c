"""The wheels: the same bytes whenever and wherever they are built; the server's serves, the demo's answers."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import runtime
from runtime.model.model import Model
from tests.support.building import REPOSITORY, run
from tests.support.environment import make_environment, required
from tests.support.wheels import DEMO, RUNTIME, SERVER, add_demo, build_wheel, copy_clone, install

PROJECTS = (RUNTIME, SERVER, DEMO)
PAGE = {path.name for path in (REPOSITORY / "runtime" / "server" / "transport" / "static").iterdir()}


@pytest.fixture(scope="module")
def wheels(demo_int8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The runtime's, the server's and the demo's."""
    place = tmp_path_factory.mktemp("wheels")
    clone = copy_clone(place / "clone")
    add_demo(clone, demo_int8_folder)
    return [build_wheel(clone / project, place / "wheels") for project in PROJECTS]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """What hatchling calls when it builds the demo's wheel."""
    spec = importlib.util.spec_from_file_location("hatch_build", REPOSITORY / DEMO / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mask() -> Iterator[None]:
    """New files are for their owner alone."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_the_same_bytes_from_another_clone(
    wheels: list[Path], demo_int8_folder: Path, tmp_path: Path, mask: None
) -> None:
    clone = copy_clone(tmp_path / "a longer way" / "to another clone")
    add_demo(clone, demo_int8_folder)
    for path in clone.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))  # 2001
        path.chmod(0o700 if path.is_dir() else 0o600)
    environment = {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}
    for project, first in zip(PROJECTS, wheels, strict=True):
        second = build_wheel(clone / project, tmp_path / "wheels", environment)
        assert second.name == first.name
        assert second.read_bytes() == first.read_bytes()


def test_the_servers_wheel_is_the_server_and_nothing_else(wheels: list[Path]) -> None:
    with zipfile.ZipFile(wheels[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "runtime" / "server").rglob("*.py")}
    assert names == modules | {f"runtime/server/transport/static/{name}" for name in PAGE}


def test_without_its_wheel_the_server_is_named(wheels: list[Path], tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", required())
    install(wheels[0], python)
    environment = {"PYTHONPATH": ""}
    done = run(python, "-m", "runtime", "serve", "--help", cwd=tmp_path, env=environment)
    assert "--max-tokens" in done.stdout
    done = run(python, "-m", "runtime", "serve", "--port", "0", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert "runtime.server is missing: pip install 'gpt2-edge[server]'" in done.stderr


def test_the_wheels_side_by_side_serve(wheels: list[Path], demo_int8_folder: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", required("server"))
    for wheel in wheels[:2]:
        install(wheel, python)
    command = [python.with_name("gpt2-edge"), "serve", "--model", demo_int8_folder, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": ""}
    with subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stderr
        line = process.stderr.readline()
        try:
            found = re.search(r"at (http://127\.0\.0\.1:\d+) ", line)
            assert found, line + process.stderr.read()
            for path in ("health", "", *sorted(PAGE - {"page.html"})):
                with urllib.request.urlopen(f"{found[1]}/{path}", timeout=30) as reply:
                    assert reply.status == 200
        finally:
            process.kill()


def test_the_demos_wheel_is_a_model_with_its_card_and_licence(wheels: list[Path], demo_int8_folder: Path) -> None:
    assert wheels[2].stat().st_size < 10e6
    with zipfile.ZipFile(wheels[2]) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    information = {name for name in found if ".dist-info/" in name}
    model = {f"gpt2_edge_demo/demo-int8/{path.name}": path.read_bytes() for path in demo_int8_folder.iterdir()}
    rest = {"gpt2_edge_demo/__init__.py", "gpt2_edge_demo/py.typed", "gpt2_edge_demo/SOURCES.md"}
    assert found.keys() - information == model.keys() | rest
    assert all(found[name] == content for name, content in model.items())
    assert found["gpt2_edge_demo/SOURCES.md"] == (REPOSITORY / "models" / "demo" / "README.md").read_bytes()
    (licence,) = (found[name].decode() for name in information if name.endswith("/licenses/LICENSE"))
    assert "https://creativecommons.org/licenses/by/4.0/" in licence
    (metadata,) = (found[name].decode() for name in information if name.endswith("/METADATA"))
    assert "License-Expression: CC-BY-4.0\n" in metadata
    assert f"Version: {runtime.__version__}\n" in metadata


def test_with_the_demos_wheel_text_is_written_at_once(wheels: list[Path], demo_int8: Model, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", required())
    install(wheels[0], python)
    install(wheels[2], python)
    environment = {"PYTHONPATH": "", "GPT2_EDGE_MODEL": "", "PYTHONWARNINGS": "error"}
    command = ["generate", "Once upon a time", "--max-new-tokens", "8"]
    done = run(python.with_name("gpt2-edge"), *command, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{runtime.generate('Once upon a time', model=demo_int8, max_new_tokens=8)}\n"
    assert done.stderr.startswith("gpt2-edge: no model is named, so the demo answers: gpt2-edge-demo 0.")
    assert done.stderr.count("\n") == 1


def test_only_a_complete_and_measured_model_makes_a_wheel(
    hook: ModuleType, demo_int8_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="make demo"):
        hook.checked_files(tmp_path / "nothing")
    model = Path(shutil.copytree(demo_int8_folder, tmp_path / "model"))
    assert {path.name for path in hook.checked_files(model)} == {path.name for path in model.iterdir()}
    quality = model / "quality.json"
    measured = quality.read_bytes()
    quality.write_bytes(measured + b" ")
    with pytest.raises(ValueError, match="is damaged"):
        hook.checked_files(model)
    quality.write_bytes(measured.replace(b'"verified": true', b'"verified": false'))
    sums = (model / "SHA256SUMS").read_text(encoding="utf-8")
    changed = sums.replace(hashlib.sha256(measured).hexdigest(), hashlib.sha256(quality.read_bytes()).hexdigest())
    (model / "SHA256SUMS").write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match="--verify none"):
        hook.checked_files(model)
