"""The seed of several continuations: one for all prompts, or one for each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime import complete, generate, stream
from runtime.generation.completion import Completion
from runtime.model.model import Model

PROMPT = "Once upon a time there was a little mouse who"


def ids_of(found: Sequence[Completion]) -> list[list[int]]:
    return [one.ids for one in found]


def test_a_seed_for_every_prompt_is_that_of_each_alone(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 10, "temperature": 1.0, "n": 2}
    prompts, seeds = [PROMPT, PROMPT, "The"], [4, 9, 4]
    found = complete(prompts, seed=seeds, **options)
    alone = [complete(prompt, seed=seed, **options) for prompt, seed in zip(prompts, seeds, strict=True)]
    assert ids_of(found) == [ids for one in alone for ids in ids_of(one)]
    assert [one.seed for one in found] == [4, 4, 9, 9, 4, 4]
    assert found[0].ids != found[2].ids
    assert ids_of(complete(prompts, **options | {"seed": np.array(seeds)})) == ids_of(found)


def test_beams_refuse_a_seed_for_every_prompt(demo_fp32: Model) -> None:
    with pytest.raises(ValueError, match="seed"):
        complete([PROMPT, "The"], model=demo_fp32, num_beams=2, seed=[1, 2])


def test_one_seed_is_that_of_every_prompt(demo_fp32: Model) -> None:
    found = complete([PROMPT, PROMPT], model=demo_fp32, max_new_tokens=10, temperature=1.0, seed=4)
    assert found[0].ids == found[1].ids


def test_a_drawn_seed_is_reported_and_gives_the_same_again(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 10, "temperature": 1.0}
    found = complete([PROMPT, PROMPT], **options)
    seeds = [one.seed for one in found if one.seed is not None]
    assert len(set(seeds)) == 2
    assert ids_of(complete([PROMPT, PROMPT], seed=seeds, **options)) == ids_of(found)
    assert complete(PROMPT, model=demo_fp32, max_new_tokens=1)[0].seed is None


@pytest.mark.parametrize(
    ("seed", "kind", "named"),
    [
        ([1], ValueError, "1 entries for 2 prompts"),
        ([1, 2, 3], ValueError, "3 entries for 2 prompts"),
        ([], ValueError, "0 entries"),
        ([1, -1], ValueError, r"seed\[1\] is -1"),
        ([1, 2**64], ValueError, r"seed\[1\] is 18446744073709551616"),
        ([True, 1], TypeError, r"seed\[0\] is True"),
        ([1, None], TypeError, r"seed\[1\] is None"),
        ([1.5, 2], TypeError, r"seed\[0\] is 1.5"),
        ("12", TypeError, "seed is '12'"),
        ({1, 2}, TypeError, "seed is {1, 2}"),
    ],
)
def test_a_wrong_seed_is_named(demo_fp32: Model, seed: Any, kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=named):
        complete([PROMPT, "The"], model=demo_fp32, temperature=1.0, seed=seed)


@pytest.mark.parametrize("function", [generate, stream])
def test_elsewhere_a_seed_is_one_number(demo_fp32: Model, function: Any) -> None:
    with pytest.raises(TypeError, match="seed is"):
        function(PROMPT, model=demo_fp32, temperature=1.0, seed=[1])


def test_the_documentation_tells_of_several_seeds() -> None:
    assert "seed" in inspect.signature(complete).parameters
    assert "a sequence with one for each" in (inspect.getdoc(complete) or "")
