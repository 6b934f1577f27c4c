"""Built folders to damage, as fixtures too, and the ways to do it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from export import build
from runtime.model import integrity
from tests.support.building import QUICK, write_tiny


def build_small(place: Path) -> Path:
    """A built folder of some 300 kB."""
    build.main([str(write_tiny(place / "tiny")), *QUICK, "--output", str(place / "model")])
    return place / "model"


def copy_aged(folder: Path, place: Path) -> Path:
    """A copy to be damaged, whose files are old enough for a stamp."""
    copy = Path(shutil.copytree(folder, place / "copy"))
    age(copy)
    return copy


def age(folder: Path, seconds: float = 60) -> None:
    """Set the time of modification back, and wait until the time of change counts as settled."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)
    time.sleep(integrity._TICK_CHANGED_NS / 1e9)


def flip(path: Path, *, keep_time: bool = False) -> None:
    data, before = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(before, before))


def list_again(folder: Path) -> None:
    """Checksums for the folder as it is now, as someone who changes it on purpose would write."""
    paths = sorted(path for path in folder.iterdir() if path.name != integrity.CHECKSUMS)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / integrity.CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error} ({sys.platform})")


# a test's own folder and stamps ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of stamps, for every test where this is imported."""
    monkeypatch.setenv(integrity.ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return copy_aged(whole, tmp_path)
