"""What ends a generation from outside, and what the model is worth afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runtime import complete, generate, stream
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from tests.conftest import DEMO

PROMPT = "Once upon a time there was a little mouse who"


@pytest.fixture(scope="module")
def long_prompt() -> str:
    """Some 450 tokens: two passes."""
    return (DEMO / "evaluation.txt").read_text(encoding="utf-8")[:1500]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes through the model and the questions, as they come."""
    found: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(InPlaceCache, name)

        def run(cache: InPlaceCache, ids: Sequence[int], **rest: int) -> Any:
            found.append("pass")
            return original(cache, ids, **rest)

        return run

    for name in ("extend", "step"):
        monkeypatch.setattr(InPlaceCache, name, counted(name))
    return found


def asking(events: list[str], n_passes: int | None = None) -> Callable[[], bool]:
    def cancel() -> bool:
        events.append("asked")
        return n_passes is not None and events.count("pass") >= n_passes

    return cancel


def assert_asked_before_every_pass(events: list[str]) -> None:
    before = ["asked", *events]
    assert events[0] == "asked"
    assert all(earlier == "asked" for earlier, later in zip(before, events, strict=False) if later == "pass")


@pytest.mark.parametrize("options", [{}, {"overflow": "slide", "max_new_tokens": 150, "suppress_ids": [0]}], ids=repr)
def test_cancel_is_asked_before_every_pass(
    demo_fp32: Model, long_prompt: str, events: list[str], options: dict[str, Any]
) -> None:
    [found] = complete(long_prompt, model=demo_fp32, cancel=asking(events), **{"max_new_tokens": 4} | options)
    n_prefill = -(-found.n_prompt_tokens // PREFILL_STEP)
    assert n_prefill > 1
    assert events.count("pass") >= n_prefill + found.n_tokens - 1
    assert found.n_slides == (1 if options else 0)
    assert_asked_before_every_pass(events)


@pytest.mark.parametrize("n_passes", [0, 1, 2, 3, 7])
def test_cancel_ends_before_the_next_pass(demo_fp32: Model, long_prompt: str, events: list[str], n_passes: int) -> None:
    [whole] = complete(long_prompt, model=demo_fp32, max_new_tokens=10)
    events.clear()
    [found] = complete(long_prompt, model=demo_fp32, max_new_tokens=10, cancel=asking(events, n_passes))
    assert events.count("pass") == n_passes
    assert found.finish_reason == "cancelled"
    assert found.ids == whole.ids[: max(0, n_passes - 1)]
    assert found.text == demo_fp32.tokenizer.decode(found.ids)


def test_a_callback_that_changes_its_mind_has_cancelled(demo_fp32: Model, long_prompt: str) -> None:
    answers = iter([False, True])
    [found] = complete(long_prompt, model=demo_fp32, max_new_tokens=5, cancel=lambda: next(answers, False))
    assert (found.finish_reason, found.ids) == ("cancelled", [])


def test_one_cancelled_prefill_does_not_touch_the_other_rows(demo_fp32: Model, long_prompt: str) -> None:
    """Every row asks for itself: the second question of three is the second row's."""
    answers = iter([False, True])
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 6}
    first, second, third = complete(["The", PROMPT, PROMPT], cancel=lambda: next(answers, False), **options)
    assert (second.finish_reason, second.ids) == ("cancelled", [])
    assert (first.ids, third.ids) == tuple(one.ids for one in complete(["The", PROMPT], **options))


def test_a_deadline_ends_the_work_with_what_there_is(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    [found] = complete(PROMPT, model=demo_fp32, max_new_tokens=50, deadline=10)
    monkeypatch.undo()
    assert found.finish_reason == "deadline"
    assert 0 < found.n_tokens < 12
    assert found.ids == complete(PROMPT, model=demo_fp32, max_new_tokens=50)[0].ids[: found.n_tokens]


def test_a_far_deadline_changes_nothing(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 20}
    assert generate(PROMPT, deadline=1e6, **options) == generate(PROMPT, **options)


def test_a_closed_iterator_ends_the_work(demo_fp32: Model, events: list[str]) -> None:
    pieces: Any = stream(PROMPT, model=demo_fp32, max_new_tokens=50)
    next(pieces)
    n_passes = len(events)
    pieces.close()
    assert (list(pieces), len(events)) == ([], n_passes)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_exception_out_of_the_callback_leaves_the_model_usable(
    demo_fp32: Model, kind: type[BaseException], events: list[str]
) -> None:
    expected = generate(PROMPT, model=demo_fp32, max_new_tokens=10)
    events.clear()

    def interrupted() -> bool:
        if len(events) > 3:
            raise kind("now")
        return False

    with pytest.raises(kind, match="now"):
        generate(PROMPT, model=demo_fp32, max_new_tokens=10, cancel=interrupted)
    assert generate(PROMPT, model=demo_fp32, max_new_tokens=10) == expected


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8"])
def test_threads_write_what_one_alone_writes(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)

    def work(seed: int) -> list[list[int]]:
        options: dict[str, Any] = {"model": model, "max_new_tokens": 10, "temperature": 1.0, "seed": seed}
        return [one.ids for one in complete([PROMPT, "The"], n=2, **options)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(6))) == [work(seed) for seed in range(6)]
