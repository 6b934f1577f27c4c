"""The fuzzer of prompts and options, with few examples: nothing is found, and what there is to find would be."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runtime
from tests.support.hostile import tiny
from tests.trials import fuzz

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or os.uname().machine != "x86_64", reason="atheris has wheels for Linux on x86-64"
    ),
]


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the trials."""
    monkeypatch.setattr(fuzz, "PLACE", tmp_path)


@pytest.mark.parametrize("name", fuzz.PROPERTIES)
def test_nothing_is_found(name: str) -> None:
    n, end, said = fuzz.fuzz(name, seconds=60, runs=3000)
    assert end == "no error", said
    assert n > 0


@given(prompt=st.text("ab", min_size=2, max_size=4))
def wrong(prompt: str) -> None:
    runtime.generate(prompt, model=tiny(), max_new_tokens=1)
    assert not prompt.startswith("ba"), "found"


def test_what_there_is_to_find_is_found() -> None:
    _, end, said = fuzz.fuzz("tests.trials.test_fuzz:wrong", seconds=60, runs=20_000)
    assert end == "a wrong error or result"
    assert "found" in said
