"""A shared beginning: with it and without, every call gives the same to the last bit; only the rest is computed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtime
from runtime import complete, generate, score, stream, stream_many
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.prefixes.prefix import known
from runtime.tokenization.encode import encode
from tests.conftest import count_passes
from tests.support.prefixing import STORY, facts, letters
from tests.support.prefixing import folders as folders
from tests.support.prefixing import tiny as tiny

SPANISH = "¿Qué tal, señor? El niño comió el último plátano 🎉🙂👩‍👩‍👧 y después... "
LONG = 2 * PREFILL_STEP + 88  # tokens
few = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids each pass of a prefill takes."""
    return count_passes(monkeypatch, "extend")


# as without --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, PREFILL_STEP - 1, PREFILL_STEP, PREFILL_STEP + 1, LONG])
def test_completions_are_those_without(tiny: Model, n: int) -> None:
    line = (n // PREFILL_STEP + 1) * PREFILL_STEP
    ends = [n, n + 1, n + 9, line - 1, line, line + 1]
    text = letters(line + 1)
    prompts = [text[:end] for end in ends if end >= n]
    prefix = runtime.prefix(text[:n], model=tiny)
    assert (len(prefix.ids), prefix.n_kept) == (n, n - n % PREFILL_STEP)
    for options in ({}, {"temperature": 1.0, "seed": 3, "n": 2}):
        shared: dict[str, Any] = {"max_new_tokens": 7, "logprobs": 4, "batch_size": 4, **options}
        with_it = complete(prompts, prefix=prefix, **shared)
        assert facts(with_it) == facts(complete(prompts, model=tiny, **shared))


def test_only_the_rest_is_computed(tiny: Model, passes: list[int]) -> None:
    prefix = runtime.prefix(letters(PREFILL_STEP + 9), model=tiny)
    assert passes == [PREFILL_STEP]
    passes.clear()
    prompts = [letters(PREFILL_STEP + n) for n in (9, 20, PREFILL_STEP + 1)]
    complete(prompts, prefix=prefix, max_new_tokens=2)
    assert passes == [9, 20, PREFILL_STEP, 1]


def test_one_id_at_least_is_left_to_predict_from(tiny: Model, passes: list[int]) -> None:
    text = letters(2 * PREFILL_STEP)
    prefix = runtime.prefix(text, model=tiny)
    passes.clear()
    generate(text, prefix=prefix, max_new_tokens=1)
    assert passes == [PREFILL_STEP]
    generate(text + ".", prefix=prefix, max_new_tokens=1)
    assert passes == [PREFILL_STEP, 1]


def test_a_short_prefix_is_right_and_kept_in_vain(tiny: Model, passes: list[int]) -> None:
    text = letters(20)
    prefix = runtime.prefix(text[:9], model=tiny)
    assert (prefix.n_kept, prefix.nbytes, passes) == (0, 0, [])
    assert generate(text, prefix=prefix) == generate(text, model=tiny)
    assert passes == [20, 20]


def test_samples_of_a_prompt_share_a_prefill(tiny: Model, passes: list[int]) -> None:
    text, shared = letters(PREFILL_STEP + 30), {"n": 5, "temperature": 1.0, "seed": 1, "max_new_tokens": 9}
    prefix = runtime.prefix(text, model=tiny)
    passes.clear()
    found = complete(text, prefix=prefix, **shared)  # type: ignore[arg-type]
    assert passes == [30]
    assert facts(found) == facts(complete(text, model=tiny, **shared))  # type: ignore[arg-type]


def test_rows_that_wait_and_leave_are_those_without(tiny: Model) -> None:
    text = letters(PREFILL_STEP + 5)
    prompts = [text + letters(n, seed=n) for n in (40, 3, 300, 3, 17)] + [text]
    prefix, options = runtime.prefix(text, model=tiny), {"stop": ["a", "e"], "max_new_tokens": 40, "batch_size": 2}
    assert facts(complete(prompts, prefix=prefix, **options)) == facts(  # type: ignore[arg-type]
        complete(prompts, model=tiny, **options)  # type: ignore[arg-type]
    )
    pieces = list(stream_many(prompts, prefix=prefix, max_new_tokens=5, batch_size=3))
    assert pieces == list(stream_many(prompts, model=tiny, max_new_tokens=5, batch_size=3))
    assert list(stream(prompts[0], prefix=prefix)) == list(stream(prompts[0], model=tiny))


def test_beams_are_those_without(tiny: Model, passes: list[int]) -> None:
    text = letters(PREFILL_STEP + 30)
    prefix = runtime.prefix(text[:-5], model=tiny)
    shared: dict[str, Any] = {"num_beams": 3, "n": 2, "max_new_tokens": 9, "logprobs": 2}
    expected = complete([text, text + "a"], model=tiny, **shared)
    passes.clear()
    assert facts(complete([text, text + "a"], prefix=prefix, **shared)) == facts(expected)
    assert passes == [30, 31]


@pytest.mark.parametrize(
    "options",
    [
        {"overflow": "slide", "max_new_tokens": 700, "pinned_tokens": PREFILL_STEP + 3},
        {"overflow": "slide", "max_new_tokens": 700},
        {"overflow": "truncate_left", "max_new_tokens": 800},
        {"overflow": "stop", "max_new_tokens": 2000},
        {"token_healing": True, "max_new_tokens": 5},
        {"lookup": 4, "max_new_tokens": 40},
    ],
    ids=str,
)
def test_windows_and_healing_are_those_without(tiny: Model, options: dict[str, Any]) -> None:
    text = letters(LONG)
    prefix = runtime.prefix(text[:-40], model=tiny)
    assert facts(complete(text, prefix=prefix, **options)) == facts(complete(text, model=tiny, **options))


def test_a_pinned_beginning_is_not_computed_again(tiny: Model, passes: list[int]) -> None:
    text, options = letters(LONG), {"overflow": "slide", "max_new_tokens": 480, "pinned_tokens": PREFILL_STEP}
    prefix = runtime.prefix(text, model=tiny)
    passes.clear()
    assert complete(text, prefix=prefix, **options)[0].n_slides == 1  # type: ignore[arg-type]
    n_latest = 3 * PREFILL_STEP // 2
    assert passes == [LONG % PREFILL_STEP, PREFILL_STEP, n_latest - 1 - PREFILL_STEP]


# scores ------------------------------------------------------------------------------------------------------------


def test_scores_are_those_without(tiny: Model, passes: list[int]) -> None:
    context, texts = letters(PREFILL_STEP + 30), [" a", " bcd", " e" + letters(300, seed=1)]
    prefix = runtime.prefix(context[:-3], model=tiny)
    expected = score(texts, context=context, model=tiny)
    passes.clear()
    assert score(texts, context=context, prefix=prefix) == expected
    assert passes[0] == 30
    assert score(texts[1], context=context, prefix=prefix) == expected[1]


def test_a_context_that_is_cut_scores_as_without(tiny: Model) -> None:
    context = letters(4 * PREFILL_STEP)
    prefix = runtime.prefix(context[:LONG], model=tiny)
    cut = score(" abc", context=context, prefix=prefix, overflow="truncate_left")
    assert cut == score(" abc", context=context, model=tiny, overflow="truncate_left")
    assert cut.n_truncated > 0


# the seam ----------------------------------------------------------------------------------------------------------


@few
@given(cut=st.integers(0, len(SPANISH) + 30), tail=st.text(max_size=12), filler=st.integers(0, 40))
def test_a_seam_anywhere_gives_the_same(demo_int8: Model, cut: int, tail: str, filler: int) -> None:
    """The end of the kept part falls on any token around the seam, whole or merged with what follows."""
    text = STORY[: 790 + 5 * filler] + SPANISH + STORY[:40] + tail
    begin = len(text) - len(tail) - 40 - len(SPANISH)
    prefix, ids = runtime.prefix(text[: begin + cut], model=demo_int8), encode(demo_int8, text)
    kept = known(prefix, ids)
    assert kept is not None
    n_same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prefix.ids, ids, strict=False))))
    assert kept.shape[3] == min(n_same, len(ids) - 1) // PREFILL_STEP * PREFILL_STEP
    options: dict[str, Any] = {"max_new_tokens": 3, "logprobs": 2}
    assert facts(complete(text, prefix=prefix, **options)) == facts(complete(text, model=demo_int8, **options))


def test_a_token_that_grows_over_the_seam_is_computed_again(demo_int8: Model, passes: list[int]) -> None:
    ids = encode(demo_int8, STORY)
    text = next(
        text
        for at in range(PREFILL_STEP, len(ids))
        if (text := demo_int8.tokenizer.decode(ids[at - PREFILL_STEP : at]))
        and len(encode(demo_int8, text)) == PREFILL_STEP
        and len(encode(demo_int8, text + "ing")) == PREFILL_STEP
    )
    prefix = runtime.prefix(text, model=demo_int8)
    passes.clear()
    assert prefix.n_kept == PREFILL_STEP
    assert generate(text + "ing it", prefix=prefix) == generate(text + "ing it", model=demo_int8)
    assert passes == [PREFILL_STEP, 1] * 2


def test_special_tokens_are_tokens_where_the_prefix_says_so(tiny: Model, passes: list[int]) -> None:
    text = letters(PREFILL_STEP) + "<|endoftext|>" + letters(PREFILL_STEP)
    plain, special = (runtime.prefix(text, model=tiny, special_tokens=flag) for flag in (False, True))
    assert len(special.ids) == 2 * PREFILL_STEP + 1 < len(plain.ids)
    expected = complete(text, model=tiny, special_tokens=True, max_new_tokens=4, logprobs=2)
    passes.clear()
    for prefix in (plain, special):
        found = complete(text, prefix=prefix, special_tokens=True, max_new_tokens=4, logprobs=2)
        assert facts(found) == facts(expected)
    assert passes == [PREFILL_STEP, 1, 1]
