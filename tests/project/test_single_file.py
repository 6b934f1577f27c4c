"""PyInstaller makes one file of an example and a model folder, with the command of docs/deploying.md; the file runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime.model.model import Model
from tests.support.building import REPOSITORY, run
from tests.support.environment import make_environment, required
from tests.support.optional import optional
from tests.support.wheels import build_wheel, copy_clone, install

PAGE = (REPOSITORY / "docs" / "deploying.md").read_text(encoding="utf-8")
PROMPTS = ["The fox said", "The owl said", "The hen said"]


def documented_command() -> list[str]:
    """The words after `pyinstaller`."""
    (found,) = re.findall(r"^app/bin/pyinstaller (.*(?:\\\n.*)*)$", PAGE, re.MULTILINE)
    return shlex.split(found.replace("\\\n", " "))


@pytest.fixture(scope="module")
def application(demo_int8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PyInstaller writes in an environment with the runtime's wheel, what it requires, and no more."""
    optional("PyInstaller")
    place = tmp_path_factory.mktemp("application")
    python = make_environment(place / "environment", {*required(), "pyinstaller"})
    install(build_wheel(copy_clone(place / "clone"), place / "wheels"), python)
    (place / "examples").mkdir()
    shutil.copyfile(REPOSITORY / "examples" / "embedded_app.py", place / "examples" / "embedded_app.py")
    shutil.copytree(demo_int8_folder, place / "models" / "demo-int8")
    environment = {"PYTHONPATH": "", "PYINSTALLER_CONFIG_DIR": str(place / "cache")}
    command = [python, "-m", "PyInstaller", "--log-level", "WARN", *documented_command()]
    done = run(*command, cwd=place, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    (found,) = (place / "dist").iterdir()
    return Path(found)


@pytest.mark.slow
def test_it_runs_where_nothing_is_installed(application: Path, demo_int8: Model, tmp_path: Path) -> None:
    alone = shutil.copy2(application, tmp_path)
    environment = {"HOME": str(tmp_path), "PATH": "", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [alone], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    texts = runtime.complete(
        PROMPTS, model=demo_int8, max_new_tokens=40, temperature=0.8, top_p=0.9, seed=7, overflow="truncate_left"
    )
    assert done.stdout.splitlines() == [f"{one.text!r} (length)" for one in texts]


@pytest.mark.slow
def test_it_has_the_size_that_is_stated(application: Path) -> None:
    (stated,) = re.findall(r"a file of about (\d+) MB", PAGE)
    assert application.stat().st_size / 1e6 == pytest.approx(int(stated), rel=0.25)


@pytest.mark.slow
def test_the_hook_takes_every_module_of_the_runtime_but_the_server(tmp_path: Path) -> None:
    optional("PyInstaller")
    script = REPOSITORY / "runtime" / "_pyinstaller" / "hook-runtime.py"
    code = "import runpy, sys; print(*runpy.run_path(sys.argv[1])['hiddenimports'])"
    done = run(sys.executable, "-c", code, script, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    taken = set(done.stdout.split())
    assert not {name for name in taken if re.match(r"runtime\.(server|integrations|_pyinstaller)(\.|$)", name)}
    left_out = ("__main__", "_pyinstaller", "integrations", "server")
    files = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "runtime").rglob("*.py")]
    wanted = {".".join(path.with_suffix("").parts) for path in files if path.parts[1].split(".")[0] not in left_out}
    assert {name.removesuffix(".__init__") for name in wanted} == taken


def test_the_hook_is_found_and_in_the_wheel() -> None:
    from runtime import _pyinstaller

    (folder,) = _pyinstaller.hook_folders()
    assert (Path(folder) / "hook-runtime.py").is_file()
    entries = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert 'hook-dirs = "runtime._pyinstaller:hook_folders"' in entries
