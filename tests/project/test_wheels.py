"""Both wheels: the same bytes whenever and wherever they are built; the server's, beside the runtime's, serves."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.building import REPOSITORY, run
from tests.support.environment import make_environment, required
from tests.support.wheels import RUNTIME, SERVER, build_wheel, copy_clone, install

PAGE = {path.name for path in (REPOSITORY / "runtime" / "server" / "transport" / "static").iterdir()}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The runtime's and the server's."""
    place = tmp_path_factory.mktemp("wheels")
    clone = copy_clone(place / "clone")
    return [build_wheel(clone / project, place / "wheels") for project in (RUNTIME, SERVER)]


@pytest.fixture
def mask() -> Iterator[None]:
    """New files are for their owner alone."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_the_same_bytes_from_another_clone(wheels: list[Path], tmp_path: Path, mask: None) -> None:
    clone = copy_clone(tmp_path / "a longer way" / "to another clone")
    for path in clone.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))  # 2001
        path.chmod(0o700 if path.is_dir() else 0o600)
    environment = {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C"}
    for project, first in zip((RUNTIME, SERVER), wheels, strict=True):
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
    for wheel in wheels:
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
