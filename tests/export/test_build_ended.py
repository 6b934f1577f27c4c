"""Builds that are interrupted, killed or run out of disk: the earlier model stays, whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from export import build, needs, pipeline
from export.checkpoint import random_weights as random_checkpoint
from export.folder import folder
from tests.support.building import (
    QUICK,
    REPOSITORY,
    SCRIPT,
    TEXT,
    TINY,
    byte_tokenizer,
    contents,
    error_line,
    run,
    run_build,
    run_here,
    write_tiny,
)

posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has neither fork nor SIGINT for one process")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize(("name", "expected"), [("SIGKILL", {"-9"}), ("SIGINT", {"130", "0"})])
def test_a_build_ended_anywhere_leaves_a_whole_model(tiny: Path, tmp_path: Path, name: str, expected: set[str]) -> None:
    place = tmp_path / "models"
    place.mkdir()
    done = run(
        sys.executable, "-m", "tests.support.ended_builds", name, tiny, place / "model", cwd=REPOSITORY, timeout=500
    )
    assert done.returncode == 0, done.stderr
    codes = done.stdout.split()
    assert set(codes) == expected
    assert len(codes) > 25


def test_a_second_build_of_one_output_is_refused(tiny: Path, tmp_path: Path) -> None:
    with folder.workspace(tmp_path / "model") as work:
        (work / "half-done").touch()
        done = run_build(tiny, *QUICK, "--output", tmp_path / "model", cwd=tmp_path)
        assert done.returncode == 1
        assert "another build is writing" in error_line(done.stderr)
        assert (work / "half-done").exists()
    assert list(tmp_path.iterdir()) == []


@posix_only
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_leaves_what_was_there(tiny: Path, tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup, and every process below inherits that")
    output = tmp_path / "model"
    build.main([str(tiny), *QUICK, "--output", str(output)])
    before = contents(output)
    long = write_tiny(tmp_path / "long")
    (long / "evaluation.txt").write_text("A long text. " * 50_000, encoding="utf-8")
    command: list[str | Path] = [sys.executable, SCRIPT, long, "--no-reference", "--output", output, "--force"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert any(line.startswith("[5/6]") for line in process.stdout)
        time.sleep(0.1)
        process.send_signal(number)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert shown.endswith("interrupted: nothing was changed\n")
    assert "Traceback" not in shown
    assert contents(output) == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "long"}


@posix_only
def test_an_interrupt_while_modules_are_imported(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n", encoding="utf-8")
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(0, '')"
    code += f"; sys.argv = ['build.py']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = run_build(cwd=tmp_path, start=("-c", code))
    assert (done.returncode, done.stderr) == (130, "interrupted: nothing was changed\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Call it with a number of kilobytes: a disk with so much free space; skips where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(free: int) -> Path:
        if not os.path.ismount(disk):
            mount("-t", "tmpfs", "-o", "size=16k", "none")
        used = sum(path.stat().st_blocks // 2 for path in disk.rglob("*"))
        mount("-o", f"remount,size={used + free}k")
        return disk

    def mount(*options: str) -> None:
        try:
            subprocess.run(["mount", *options, disk], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small disk can only be mounted by root, on Linux: {error}")

    yield resize
    if os.path.ismount(disk):
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_at_any_step(
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(needs, "free_disk", lambda _output: 10**15)  # else the build refuses before it begins
    monkeypatch.setitem(random_checkpoint.SIZES, "tiny", TINY)
    monkeypatch.setattr(pipeline, "EVALUATION_TEXT", tmp_path / "evaluation.txt")
    (tmp_path / "evaluation.txt").write_text(TEXT[:300], encoding="utf-8")
    byte_tokenizer(TINY.vocab_size).save(str(tmp_path / "tokenizer.json"))
    output = small_disk(2000) / "model"
    typed: list[str | Path] = ["random:tiny", "--tokenizer", tmp_path, "--no-reference", "--output", output]
    assert run_here(monkeypatch, *typed) == 0
    before, steps = contents(output), set[str]()
    for free in [*range(8, 1400, 100), *range(1400, 1700, 8)]:
        small_disk(free)
        capsys.readouterr()
        code = run_here(monkeypatch, *typed, "--force")
        shown = capsys.readouterr()
        if code == 0:
            break
        assert code == 1
        assert error_line(shown.err).startswith("error: the disk is full (")
        assert contents(output) == before
        assert [path.name for path in output.parent.iterdir()] == ["model"]
        steps.add([line for line in shown.out.splitlines() if line.startswith("[")][-1][1])
    assert code == 0
    assert steps == set("12456")  # noise is not calibrated
