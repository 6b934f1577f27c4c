"""`gpt2-edge build`: the arguments, the output, the exit status and the signals of export/build.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runtime
from export import arguments as build_arguments
from export.interrupts import MESSAGE
from runtime.cli import export_stage
from runtime.cli.export_stage import HOW_TO_GET_IT, find_build_script, run_build_script
from tests.support.building import QUICK, REPOSITORY, SCRIPT, write_tiny
from tests.support.command_line import Command, posix_only

BUILD = [sys.executable, "-m", "runtime", "build"]


def build(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*BUILD, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_it_builds_a_model_that_loads(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    done = build("tiny", *QUICK, "--output", "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with runtime.load(tmp_path / "model") as model:
        assert model.config.n_layer == 2


@pytest.mark.parametrize(("arguments", "status"), [(["no-such-folder/x/y"], 1), (["--blocksize", "32"], 2)])
def test_errors_and_exit_status_are_those_of_the_build(tmp_path: Path, arguments: list[str], status: int) -> None:
    done = build(*arguments, cwd=tmp_path)
    assert done.returncode == status
    direct = subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == (direct.stdout, direct.stderr)


def test_its_help_is_that_of_the_build(tmp_path: Path) -> None:
    done = build("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == build_arguments.argument_parser().format_help()


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_build(tmp_path: Path, number: signal.Signals) -> None:
    command = [*BUILD, str(REPOSITORY / "models" / "demo"), "--no-reference", "--output", str(tmp_path / "model")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        # The build has begun.
        process.stdout.readline()
        time.sleep(1)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert MESSAGE in said.decode()
    assert list(tmp_path.iterdir()) == []


def test_another_package_of_that_name_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "build.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_build_script() == SCRIPT
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "site-packages" / "runtime" / "__init__.py"))
    assert find_build_script() is None


@pytest.mark.parametrize("arguments", [[], ["gpt2"], ["--no-reference", "gpt2"], ["gpt2", "--help"]])
def test_without_the_export_stage_it_says_how_to_get_it(
    command: Command, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "__file__", "/nowhere/runtime/__init__.py")
    status, out, error = command("build", *arguments)
    assert (status, out) == (1, "")
    assert error == f"gpt2-edge: error: the export stage is not installed. {HOW_TO_GET_IT}\n"


def test_without_the_export_stage_its_help_says_how_to_get_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "__file__", "/nowhere/runtime/__init__.py")
    with pytest.raises(SystemExit) as ended:
        command("build", "--help")
    assert ended.value.code == 0
    assert HOW_TO_GET_IT in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_on_windows_it_is_waited_for() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert export_stage._wait([sys.executable, "-c", "import sys; sys.exit(7)"]) == 7
    assert signal.getsignal(signal.SIGINT) is before


def test_a_python_that_does_not_know_itself_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(RuntimeError, match=re.escape(f"python {SCRIPT}")):
        run_build_script(SCRIPT, [])
