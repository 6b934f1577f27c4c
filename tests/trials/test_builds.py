"""Builds that end badly, a few of each kind: see `tests.trials.builds`, whose process is to have no threads."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.support.building import REPOSITORY, run

KINDS = ("killed", "gap", "size", "disk", "permissions", "twice")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="Windows has neither fork nor signals that kill"),
]


def outcomes(kind: str, count: int, before: str = "") -> dict[str, int] | None:
    """What so many builds of a kind left, once `before` was run in the trial's process."""
    code = (
        f"import json\nfrom tests.trials import builds\n{before}\nprint(json.dumps(builds.try_kind({kind!r}, {count})))"
    )
    done = run(sys.executable, "-c", code, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] | None = json.loads(done.stdout)
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_the_old_model_or_the_new_one_is_there_whole(kind: str) -> None:
    counts = outcomes(kind, 12)
    if counts is None:
        assert kind == "disk"
        pytest.skip("a small disk can only be mounted by root, on Linux")
    assert sum(counts.values()) == 12
    assert counts.get("neither, or something left", 0) == 0


def test_a_model_that_nobody_puts_back_is_seen() -> None:
    counts = outcomes("gap", 10, "from runtime.model import model; model.recover = lambda _: None")
    assert counts is not None
    assert counts["neither, or something left"] > 0


def test_what_is_left_is_seen() -> None:
    leave = "lambda site, *_: (site.output.parent / 'left').touch() or 1"
    counts = outcomes("killed", 30, f"builds.KINDS['killed'] = ('', {leave})")
    assert counts is not None
    assert counts["neither, or something left"] > 0
