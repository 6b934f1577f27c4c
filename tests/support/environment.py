"""Virtual environments that hold some of the installed distributions and nothing else; no network is needed."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import venv
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

from tests.support.requirements import asked

_NAME = re.compile(r"[\w.-]+")


def required(*extras: str) -> set[str]:
    """Names of the distributions that the project declares it needs, those of some extras included."""
    return {need.name for need in asked(*extras)}


def make_environment(folder: Path, distributions: Iterable[str]) -> Path:
    """A virtual environment with links to these distributions and what they need; returns its python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for found in {d.metadata["Name"]: d for name in distributions for d in with_needs(name)}.values():
        for top in {Path(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            link(Path(str(found.locate_file(top))), site / top)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def with_needs(name: str) -> Iterator[Distribution]:
    """The distribution, and those it requires (extras left out) that are installed: pip saw to it that all are."""
    waiting, seen = [name], set[str]()
    while waiting:
        name = waiting.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another platform or Python
            continue
        yield found
        needed = (need for need in found.requires or [] if "extra ==" not in need)
        waiting += [match.group() for need in needed if (match := _NAME.match(need))]


def link(source: Path, target: Path) -> None:
    """A symbolic link; skips the test where there are none, or where the source is not a file of its own."""
    if target.is_symlink() or not source.exists():
        return
    try:
        target.symlink_to(source)
    except OSError as error:
        pytest.skip(f"this test links packages into an environment of its own: {error} ({sys.platform})")
