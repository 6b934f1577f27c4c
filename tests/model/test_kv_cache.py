"""The two key-value caches, beside each other and in many threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from runtime import generate
from runtime.model.dynamic_kv_cache import GrowingCache
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from runtime.tokenization.encode import encode

TEXT = "Once upon a time there was an old king who had three sons, and the youngest of them was called"


@pytest.fixture
def ids(demo_fp32: Model) -> list[int]:
    return encode(demo_fp32, TEXT)


def last_logits(model: Model, ids: list[int], cuts: list[int]) -> Any:
    """Logits after the last id, the ids given in passes that end at the cuts."""
    cache = model.new_cache(len(ids))
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        logits = cache.extend(ids[begin:end])
    return logits[-1].copy()


def test_each_graph_has_its_cache(demo_fp32: Model, demo_reference: Model) -> None:
    assert isinstance(demo_fp32.new_cache(1), InPlaceCache)
    assert isinstance(demo_reference.new_cache(1), GrowingCache)


def test_both_caches_give_the_same_logits(demo_fp32: Model, demo_reference: Model, ids: list[int]) -> None:
    ours, plain = demo_fp32.new_cache(len(ids)), demo_reference.new_cache(len(ids))
    np.testing.assert_allclose(ours.extend(ids[:9], keep=9), plain.extend(ids[:9], keep=9), atol=2e-3)
    np.testing.assert_allclose(ours.extend(ids[9:14], keep=2), plain.extend(ids[9:14], keep=2), atol=2e-3)
    for id_ in ids[14:]:
        np.testing.assert_allclose(ours.step([id_]), plain.step([id_]), atol=2e-3)
    assert ours.lengths == plain.lengths == [len(ids)]


def test_both_caches_write_the_same_text(demo_fp32: Model, demo_reference: Model) -> None:
    ours = generate(TEXT, model=demo_fp32, max_new_tokens=60)
    assert ours == generate(TEXT, model=demo_reference, max_new_tokens=60)


@pytest.mark.parametrize("cuts", [[1], [5, 6], [2, 3, 4, 11], list(range(1, 15))], ids=str)
def test_logits_do_not_depend_on_the_cuts(demo_fp32: Model, ids: list[int], cuts: list[int]) -> None:
    np.testing.assert_allclose(last_logits(demo_fp32, ids, cuts), last_logits(demo_fp32, ids, []), atol=2e-3)


@pytest.mark.parametrize("capacity", [30, 31, 512])
def test_logits_do_not_depend_on_the_capacity(demo_fp32: Model, ids: list[int], capacity: int) -> None:
    roomy = demo_fp32.new_cache(capacity).extend(ids)[-1]
    np.testing.assert_allclose(roomy, last_logits(demo_fp32, ids, []), atol=2e-3)


def one_too_many(cache: Any, ids: list[int]) -> None:
    cache.extend([*ids, ids[0]])


def a_step_too_many(cache: Any, ids: list[int]) -> None:
    cache.extend(ids)
    cache.step(ids[:1])


@pytest.mark.parametrize("overflow", [one_too_many, a_step_too_many])
def test_beyond_the_capacity_nothing_is_written(
    demo_int8: Model, ids: list[int], overflow: Callable[[Any, list[int]], None]
) -> None:
    ids = ids[:10]
    cache = demo_int8.new_cache(len(ids))
    with pytest.raises(ValueError, match=r"capacity of 10\b"):
        overflow(cache, ids)
    assert cache.lengths == [0 if overflow is one_too_many else len(ids)]
    cache.clear_row(0)
    assert (cache.extend(ids) == demo_int8.new_cache(len(ids)).extend(ids)).all()


def test_a_full_cache_still_refuses_after_a_refusal(demo_fp32: Model, ids: list[int]) -> None:
    cache = demo_fp32.new_cache(4)
    cache.extend(ids[:3])
    for _ in range(2):
        with pytest.raises(ValueError, match="capacity"):
            cache.extend(ids[3:5])
    np.testing.assert_allclose(cache.step(ids[3:4])[-1], last_logits(demo_fp32, ids[:4], []), atol=2e-3)
    with pytest.raises(ValueError, match="capacity"):
        cache.step(ids[4:5])


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_reference"])
def test_a_cleared_row_forgets(name: str, ids: list[int], request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    cache = model.new_cache(len(ids))
    cache.extend(ids[::-1])
    cache.clear_row(0)
    np.testing.assert_array_equal(cache.extend(ids), model.new_cache(len(ids)).extend(ids))


def test_rows_of_a_cache_do_not_touch_each_other(demo_int8: Model, ids: list[int]) -> None:
    rows = [ids[:7], ids[3:15], ids[5:6]]
    cache = demo_int8.new_cache(20, len(rows))
    alone = [demo_int8.new_cache(20) for _ in rows]
    for row, held in enumerate(rows):
        assert (cache.extend(held, row=row) == alone[row].extend(held)).all()
    for step in ([3, 4, 5], [600, 7, 80]):
        together = cache.step(step).copy()
        assert [(together[row] == alone[row].step([id_])[0]).all() for row, id_ in enumerate(step)] == [True] * 3


def test_a_copied_row_continues_like_its_source(demo_int8: Model, ids: list[int]) -> None:
    cache = demo_int8.new_cache(len(ids) + 1, 2)
    cache.extend(ids[::-1][:5], row=1)
    cache.extend(ids)
    cache.copy_row(0, 1)
    first, second = cache.step([9, 9])
    assert cache.lengths == [len(ids) + 1] * 2
    assert (first == second).all()


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_reference"])
def test_many_threads_write_what_one_does(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    prompts = [TEXT[: 20 + 5 * i] for i in range(8)]

    def write(prompt: str) -> str:
        return generate(prompt, model=model, max_new_tokens=20, temperature=0.8, seed=1)

    expected = [write(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, prompts * 2)) == expected * 2
