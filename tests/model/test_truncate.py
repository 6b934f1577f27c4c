"""Passes over several ids, of which the cache keeps a part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import complete
from runtime.model.model import Model
from runtime.tokenization.encode import encode
from tests.support.checkpoints import build_model, write_checkpoint

PROMPT = "Once upon a time there was a little mouse who"
TEXT = "Once upon a time there was an old king who had three sons, and the youngest of them was called"

# truncated caches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_reference"])
def test_a_truncated_row_is_as_if_it_had_never_been_longer(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    ids = encode(model, TEXT)
    cache, fresh = model.new_cache(40), model.new_cache(40)
    cache.extend(ids[:12])
    cache.extend(ids[::-1][:6])
    cache.truncate(0, 12)
    fresh.extend(ids[:12])
    assert cache.lengths == fresh.lengths == [12]
    np.testing.assert_array_equal(cache.step(ids[12:13]), fresh.step(ids[12:13]))
    np.testing.assert_array_equal(cache.extend(ids[13:16], keep=3), fresh.extend(ids[13:16], keep=3))
    cache.truncate(0, 99)
    assert cache.lengths == [16]


def test_truncating_a_row_leaves_the_others(demo_int8: Model) -> None:
    ids = encode(demo_int8, TEXT)
    cache, alone = demo_int8.new_cache(40, 2), demo_int8.new_cache(40)
    for row in (0, 1):
        cache.extend(ids[:9], row=row)
    alone.extend(ids[:9])
    cache.truncate(0, 2)
    assert cache.lengths == [2, 9]
    np.testing.assert_array_equal(cache.step([5, 6])[1], alone.step([6])[0])


# int8 --------------------------------------------------------------------------------------------------------------


def near_tie(model: Model, ids: Sequence[int], others: Sequence[int]) -> float:
    """How much likelier the one of two ids is where they part, in shares of the spread of the logits; 0 for equals."""
    at = next((at for at, pair in enumerate(zip(ids, others, strict=True)) if pair[0] != pair[1]), None)
    if at is None:
        return 0.0
    logits = model.new_cache(at).extend(ids[:at])[-1]
    return float(abs(logits[ids[at]] - logits[others[at]]) / logits.std())


def test_int8_is_equal_up_to_near_ties(demo_int8: Model) -> None:
    prompts = [PROMPT, "The", "THE END.\n", TEXT, "def add(a, b):\n    return a + b\n\n\ndef", "¿Qué tal, señor?"]
    options: dict[str, Any] = {"model": demo_int8, "max_new_tokens": 40, "min_new_tokens": 40}
    expected, found = complete(prompts, **options), complete(prompts, lookup=8, **options)
    begins = [encode(demo_int8, prompt) for prompt in prompts]
    ties = [near_tie(demo_int8, b + x.ids, b + y.ids) for b, x, y in zip(begins, expected, found, strict=True)]
    assert max(ties) < 0.03
    assert sum(tie == 0 for tie in ties) >= len(ties) - 2


def test_a_pass_of_several_is_a_pass_of_one_but_for_rounding(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny")
    for precision in ("int8", "int4"):
        with Model(build_model(tmp_path / "tiny", precision, 32), threads=1) as model:
            one, several = model.new_cache(60), model.new_cache(60)
            ids = np.random.default_rng(0).integers(0, 300, 40).tolist()
            single = np.concatenate([one.step([id_]).copy() for id_ in ids])
            together = np.concatenate([several.extend(ids[at : at + 5], keep=5) for at in range(0, 40, 5)])
            assert np.abs(single - together).max() < 0.05 * single.std()
