"""The versions of Python that the project supports, and their interpreters on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.requirements import RUNTIME

VERSIONS = tuple(
    found[1]
    for line in RUNTIME["project"]["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
)


def find_interpreter(version: str) -> Path | None:
    """A Python of this version, 3.12 say: this one, one on PATH, or one that pyenv has. None where there is none."""
    return next((path for path in _candidates(version) if _version(path) == version), None)


def _candidates(version: str) -> Iterator[Path]:
    yield Path(sys.executable)
    found = shutil.which(f"python{version}")
    if found:
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"))


def _version(python: Path) -> str:
    """Major and minor version, "" if it does not run: what pyenv puts on PATH need not stand for anything."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
