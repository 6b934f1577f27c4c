"""Counted instructions: the plugin counts what is known, and the table."""

from __future__ import annotations

import itertools
import platform
import shutil
import sys

import pytest

from tests.emulation import counter, instructions
from tests.emulation.processors import PROCESSORS

LOOP = """
import os
def mark():
    try: os.close(0x6b0c0de)
    except OSError: pass
def loop(n):
    for _ in range(n): pass
for n in (1000, 1000, 101000, 201000):
    loop(n)
    mark()
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("cc") is None,
    reason="the emulator is Linux's on x86-64, and the plugin is compiled",
)
def test_twice_the_loop_takes_twice_the_instructions() -> None:
    try:
        counter.prepare()
    except (OSError, RuntimeError) as error:
        pytest.skip(str(error))
    marks = counter.count_python(PROCESSORS["Nehalem"], ["-I", "-S", "-c", LOOP], limit=120)
    assert len(marks) == 4
    few, more, most = (after - before for before, after in itertools.pairwise(marks))
    assert (most - few) / (more - few) == pytest.approx(2, rel=0.01)
    assert 3 < (most - more) / 100_000 < 1000  # machine instructions for an empty loop of Python


def test_a_token_is_the_median_of_the_steps() -> None:
    marks = [1000, 1000 + 32 * 50, *(2600 + 10 * n for n in (1, 2, 3, 4))]
    with pytest.raises(RuntimeError, match="7 marks were expected, and 6 came"):
        instructions.a_token(marks)
    found = instructions.a_token([*marks, marks[-1] + 500])
    assert found == {"prompt": 50, "token": 10}


def test_the_table_has_millions_and_how_many_times_dense() -> None:
    counts = {"cortex-a72": {"dense": {"token": 40e6, "prompt": 30e6}, "block": {"token": 300e6, "prompt": 240e6}}}
    text = instructions.markdown(counts, {"Nehalem, int4": "it failed"}, "gpt2")
    about = PROCESSORS["cortex-a72"].about
    assert f"| cortex-a72 ({about}) | 40 | 300 (7.5) | - | 30 | 240 (8.0) | - |" in text
    assert "Missing: Nehalem, int4: it failed" in text
