"""The command `gpt2-edge` in a process of its own: where it runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX signals, pipes and shells")


def environment(folder: Path, **changed: str) -> dict[str, str]:
    encodings = ("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(encodings)}
    return inherited | {"GPT2_EDGE_MODEL": str(folder)} | changed
