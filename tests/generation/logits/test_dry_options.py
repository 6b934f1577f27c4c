"""The options of DRY reach the logits, and have no effect without `dry_multiplier`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.errors import OptionError
from runtime.generation.logits.dry import make_dry
from runtime.generation.logits.history import TokenHistory
from runtime.model.model import Model
from runtime.options import DRY_BREAKERS, Options
from runtime.tokenization.encode import encode_prompt
from tests.support import oracle

PROMPT = "The mouse ran and ran. The mouse ran and ran. The mouse ran"


def greedy(model: Model, options: Options, n: int) -> list[int]:
    """By transformers' logits, the penalty computed anew from all ids at every step."""
    dry = make_dry(
        model,
        options.dry_multiplier,
        options.dry_base,
        options.dry_allowed_length,
        tuple(options.dry_sequence_breakers),
    )
    assert dry is not None
    ids = encode_prompt(model, PROMPT)
    n_prompt = len(ids)
    while len(ids) < n_prompt + n:
        logits = oracle.torch_logits(oracle.demo(), ids)[-1].astype(np.float32)
        history = TokenHistory(n_prompt, model.config.n_positions, finds_repeats=True)
        history.follow(ids)
        dry.penalize(logits, history)
        if (best := int(logits.argmax())) in model.config.eos_token_ids:
            break
        ids.append(best)
    return ids[n_prompt:]


@pytest.mark.parametrize(
    "given",
    [
        {"dry_multiplier": 0.8},
        {"dry_multiplier": 5, "dry_base": 1, "dry_allowed_length": 1},
        {"dry_multiplier": 3.0, "dry_allowed_length": 3, "dry_sequence_breakers": " mouse"},
        {"dry_multiplier": 3.0, "dry_sequence_breakers": ()},
    ],
    ids=repr,
)
def test_a_text_is_penalized_as_the_options_say(demo_fp32: Model, given: dict[str, Any]) -> None:
    [one] = runtime.complete(PROMPT, model=demo_fp32, max_new_tokens=16, **given)
    assert one.ids == greedy(demo_fp32, Options(**given), 16)


def test_repetitions_become_rare(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 40, "dry_multiplier": 50, "dry_allowed_length": 1}
    for more in ({}, {"num_beams": 3}, {"lookup": 4}, {"temperature": 0.1, "seed": 1}):
        [one] = runtime.complete(PROMPT, dry_sequence_breakers=(), **options, **more)
        ids = [*encode_prompt(demo_fp32, PROMPT), *one.ids]
        pairs = list(itertools.pairwise(ids))
        n_prompt = len(ids) - one.n_tokens
        assert not set(pairs[n_prompt - 1 :]) & set(pairs[: n_prompt - 1])
        assert len(set(pairs[n_prompt - 1 :])) == one.n_tokens


def test_off_is_off(demo_fp32: Model) -> None:
    free = runtime.generate(PROMPT, model=demo_fp32, max_new_tokens=12)
    assert runtime.generate(PROMPT, model=demo_fp32, max_new_tokens=12, dry_multiplier=0) == free
    assert Options().dry_sequence_breakers == DRY_BREAKERS == ("\n", ":", '"', "*")


@pytest.mark.parametrize(
    "given",
    [{"dry_base": 2}, {"dry_allowed_length": 3}, {"dry_sequence_breakers": ["\n"]}, {"dry_sequence_breakers": ()}],
    ids=repr,
)
def test_without_a_multiplier_the_others_have_no_effect(given: dict[str, Any]) -> None:
    [name] = given
    with pytest.raises(OptionError, match=f"{name}=.* has no effect: dry_multiplier is 0") as error:
        Options(**given)
    assert error.value.options == (name, "dry_multiplier")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"dry_multiplier": -0.1}, "at least 0"),
        ({"dry_base": 0.9, "dry_multiplier": 1}, "at least 1"),
        ({"dry_allowed_length": -1, "dry_multiplier": 1}, "at least 0"),
        ({"dry_sequence_breakers": ["a", ""], "dry_multiplier": 1}, "not empty"),
        ({"dry_sequence_breakers": "a" * 41, "dry_multiplier": 1}, "a text of 41 characters; at most 40"),
        ({"dry_sequence_breakers": "\ud800", "dry_multiplier": 1}, "lone surrogate"),
    ],
    ids=repr,
)
def test_what_is_out_of_range_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(given))} .*{told}"):
        Options(**given)
