"""The examples in the docstrings of scoring, tasks and the command line that need no model."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "runtime.cli.output",
    "runtime.scoring.last_word",
    "runtime.scoring.multiple_choice",
    "runtime.scoring.scoring",
    "runtime.scoring.windows",
    "runtime.scoring.words",
    "runtime.tasks.answers",
    "runtime.tasks.perform",
    "runtime.tasks.task",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
