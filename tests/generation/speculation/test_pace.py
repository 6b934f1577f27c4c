"""How many ids are proposed at a time."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.generation.speculation.step import PATIENCE, Pace


def test_the_pace_rises_with_success_and_falls_to_nothing() -> None:
    pace = Pace(10, 0.3)
    counts = []
    for _ in range(8):
        counts.append(n := pace.count())
        pace.learn(n, n)
    assert counts == sorted(counts)
    assert 1 <= counts[0] <= 3
    assert counts[-1] == 10
    for _ in range(12):
        pace.learn(10, 0)
    assert [pace.count() for _ in range(PATIENCE)] == [0] * PATIENCE
    assert pace.count() == pace.count() == 1  # until one was tried
    pace.learn(1, 0)
    assert pace.count() == 0


def test_the_pace_comes_back_when_a_trial_succeeds() -> None:
    pace = Pace(10, 0.3)
    for _ in range(20):
        pace.learn(1, 0)
    for _ in range(PATIENCE + 1):
        n = pace.count()
    for _ in range(8):
        pace.learn(n, n)
        n = max(1, pace.count())
    assert n > 4


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("cost", [0.1, 0.3, 0.5])
def test_the_pace_settles_at_what_pays_best(rate: float, cost: float) -> None:
    """By simulation: ids a unit of time, of each fixed count, where every id comes true by itself at this rate."""
    random = np.random.default_rng(0)
    pace, chosen = Pace(12, cost), []
    for _ in range(3000):
        n = pace.count()
        n_true = next((at for at in range(n) if random.random() > rate), n)
        chosen.append((n_true + 1) / (1 + cost * n))
        if n:
            pace.learn(n, n_true)
    best = max(sum(rate**at for at in range(n + 1)) / (1 + cost * n) for n in range(13))
    assert np.mean(chosen) > 0.85 * best
