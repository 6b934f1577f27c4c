"""Packages that a test compares with and that may not be installed: the test is skipped, but never where CI runs."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def optional(name: str) -> ModuleType:
    """The module, or a skip that names it. With CI=true a missing package is a failure."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{name} is not installed: pip install -e '.[export,dev]' brings it")
