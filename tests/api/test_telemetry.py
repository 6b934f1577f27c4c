"""No telemetry: onnxruntime's is off, in native code too, which Python's audit hooks do not see."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from runtime import _telemetry as telemetry
from tests.support.building import EVERY_CALL, REPOSITORY, run
from tests.support.damaging import build_small


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; this process has switched telemetry off for its children, too."""
    for name in ("HOME", "LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_it_is_off_in_this_process() -> None:
    assert telemetry.__name__ in sys.modules
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_nothing_is_kept_in_the_users_home(whole: Path, home: Path, tmp_path: Path) -> None:
    done = run(sys.executable, EVERY_CALL, whole, "A tiny", cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(
    shutil.which("strace") is None and not (sys.platform == "linux" and "CI" in os.environ),
    reason="strace shows native system calls",
)
def test_nothing_connects(whole: Path, home: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    watch = ["strace", "-f", "-e", "trace=socket,connect,bind,sendto,sendmsg", "-o", str(trace)]
    command = [*watch, sys.executable, EVERY_CALL, whole, "A tiny"]
    done = run(*command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    assert [line for line in trace.read_text(encoding="utf-8").splitlines() if "AF_INET" in line] == []
