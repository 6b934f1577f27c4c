"""Damage of every kind, to every file: no crash, and under full verification no acceptance."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.damaging import build_small
from tests.trials import damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("how", ["full", "off"])
def test_damage_crashes_nothing_and_full_accepts_none(whole: Path, how: str) -> None:
    trials = damage.try_damages(whole, how, 240, seed=1)
    assert [trial for trial in trials if damage.is_bad(how, trial)] == []
    assert {trial["kind"] for trial in trials} == set(damage.KINDS)
    assert any(trial["outcome"] == damage.REFUSED for trial in trials)


def test_the_trial_sees_a_crash_and_a_wrong_acceptance(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "start", lambda _folder: dying())
    (trial,) = damage.try_damages(whole, "off", 1)
    assert (trial["outcome"], damage.is_bad("off", trial)) == (damage.CRASH, True)
    assert damage.is_bad("full", {"outcome": damage.ACCEPTED})


def dying() -> subprocess.Popen[str]:
    """A worker that dies of the first thing it is asked."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", "import os; input(); os.abort()"], stdin=pipe, stdout=pipe, text=True
    )
