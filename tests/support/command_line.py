"""The command `gpt2-edge`: in this process, and in one of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]
"""Runs the command with its arguments: status, standard output and standard error."""

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX signals, pipes and shells")


def environment(folder: Path, **changed: str) -> dict[str, str]:
    encodings = ("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(encodings)}
    return inherited | {"GPT2_EDGE_MODEL": str(folder)} | changed
