"""Builds that end badly, a few of each kind: see `tests.trials.builds`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if os.name == "nt":
    pytest.skip("Windows has neither fork nor signals that kill", allow_module_level=True)

from tests.trials import builds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", builds.KINDS)
def test_the_old_model_or_the_new_one_is_there_whole(kind: str) -> None:
    counts = builds.try_kind(kind, 12, seed=1)
    if counts is None:
        pytest.skip("a small disk can only be mounted by root, on Linux")
    assert counts[builds.LOST] == 0
    assert counts.total() == 12


def test_a_model_that_nobody_puts_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.model.close_gap", lambda _: None)
    counts = builds.try_kind("gap", 10)
    assert counts is not None
    assert counts[builds.LOST] > 0


def test_what_is_left_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with builds.open_site(tmp_path, "killed") as site:
        (site.output.parent / "left").touch()
        monkeypatch.setattr(builds.random.Random, "random", lambda _: 0.0)
        assert builds.try_once(site, lambda *_: 1, builds.random.Random(0)) == builds.LOST
