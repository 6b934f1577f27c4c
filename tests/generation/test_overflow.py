"""Prompts and continuations beyond the model's context: error, stop, truncate_left, slide."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from runtime import Completion, complete, generate
from runtime.generation.context_window import fit_prompt, slide
from runtime.model.model import Model
from runtime.options import Options
from runtime.tokenization.encode import encode
from tests.support.checkpoints import build_model, write_checkpoint

N = 24  # positions of the tiny model, whose ids are bytes
LETTERS = "abcdefghijklmnopqrstuvwxyz" * 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPT2LMHeadModel]:
    folder = tmp_path_factory.mktemp("overflow") / "tiny"
    return folder, write_checkpoint(folder, n_layer=2, n_positions=N)


@pytest.fixture(scope="module")
def oracle(checkpoint: tuple[Path, GPT2LMHeadModel]) -> GPT2LMHeadModel:
    return checkpoint[1]


@pytest.fixture(scope="module")
def tiny(checkpoint: tuple[Path, GPT2LMHeadModel]) -> Iterator[Model]:
    with Model(build_model(checkpoint[0]), threads=1) as model:
        yield model


def greedy(oracle: GPT2LMHeadModel, ids: list[int]) -> int:
    with torch.no_grad():
        logits = oracle(torch.tensor([ids])).logits[0, -1].clone()
    logits[256:] = -torch.inf  # these tests are about length: no end of text
    return int(logits.argmax())


def write(model: Model, n_prompt: int, n_new: int, **options: Any) -> Completion:
    [found] = complete(LETTERS[:n_prompt], model=model, max_new_tokens=n_new, suppress_ids=range(256, 300), **options)
    return found


def slid(oracle: GPT2LMHeadModel, prompt: list[int], n_new: int, n_pinned: int) -> tuple[list[int], int]:
    """Each id from the window fed anew; how often the window moved."""
    ids, n_slides = list(prompt), 0
    window = list(ids) if len(ids) < N else slide(ids, n_pinned, N)
    for _ in range(n_new):
        if len(window) > N:
            window = slide(ids, n_pinned, N)
            n_slides += 1
        ids.append(greedy(oracle, window))
        window.append(ids[-1])
    return ids[len(prompt) :], n_slides


# error -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_prompt", "n_new"), [(1, N), (N - 1, 2), (N // 2, N // 2 + 1)])
def test_an_error_gives_the_numbers_and_what_would_fit(tiny: Model, n_prompt: int, n_new: int) -> None:
    with pytest.raises(ValueError) as error:
        write(tiny, n_prompt, n_new)
    assert all(str(number) in str(error.value) for number in (n_prompt, n_new, N, N - n_prompt))
    assert write(tiny, n_prompt, n_new - 1).n_tokens == n_new - 1


@pytest.mark.parametrize("overflow", ["error", "stop"])
def test_a_prompt_as_long_as_the_context_is_refused(tiny: Model, overflow: str) -> None:
    with pytest.raises(ValueError, match=f"{N} tokens.*must be under {N}"):
        write(tiny, N, 1, overflow=overflow)


# stop --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_prompt", [1, 10, N - 1])
def test_stop_ends_where_the_context_is_full(tiny: Model, n_prompt: int) -> None:
    found = write(tiny, n_prompt, 100, overflow="stop")
    assert (found.finish_reason, found.n_tokens) == ("context", N - n_prompt)
    exact = write(tiny, n_prompt, N - n_prompt, overflow="stop")
    assert (exact.finish_reason, exact.ids) == ("length", found.ids)
    assert exact.ids == write(tiny, n_prompt, N - n_prompt).ids


# truncate_left -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_prompt", "n_new"), [(N, 1), (N - 5, 6), (50, 10), (78, N - 1)])
def test_truncate_left_continues_the_end_of_the_prompt(tiny: Model, n_prompt: int, n_new: int) -> None:
    found = write(tiny, n_prompt, n_new, overflow="truncate_left")
    kept = LETTERS[:n_prompt][-(N - n_new) :]
    [alone] = complete(kept, model=tiny, max_new_tokens=n_new, suppress_ids=range(256, 300))
    assert (found.ids, found.n_truncated) == (alone.ids, n_prompt + n_new - N)


def test_truncate_left_leaves_what_fits_alone(tiny: Model) -> None:
    found = write(tiny, 10, N - 10, overflow="truncate_left")
    assert (found.n_truncated, found.ids) == (0, write(tiny, 10, N - 10).ids)


def test_truncate_left_keeps_one_token_at_least(tiny: Model) -> None:
    with pytest.raises(ValueError, match=f"under {N} for any prompt"):
        write(tiny, 5, N, overflow="truncate_left")


# slide -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_pinned", [0, 1, 5, N // 2])
@pytest.mark.parametrize("n_prompt", [6, N - 1, N, N + 1, 60])
def test_slide_is_the_window_fed_anew(tiny: Model, oracle: GPT2LMHeadModel, n_prompt: int, n_pinned: int) -> None:
    prompt = encode(tiny, LETTERS[:n_prompt])
    expected, n_slides = slid(oracle, prompt, 50, min(n_pinned, n_prompt))
    found = write(tiny, n_prompt, 50, overflow="slide", pinned_tokens=n_pinned)
    assert (found.ids, found.n_slides, found.finish_reason) == (expected, n_slides, "length")
    dropped = 0 if n_prompt < N else n_prompt - len(slide(prompt, n_pinned, N))
    assert found.n_truncated == dropped


def test_nothing_slides_while_there_is_room(tiny: Model) -> None:
    """The last id is predicted only, so one more than the positions are written before the window moves."""
    assert [write(tiny, 4, n, overflow="slide").n_slides for n in (N - 4, N - 3, N - 2)] == [0, 0, 1]
    assert write(tiny, 4, N - 4, overflow="slide").ids == write(tiny, 4, N - 4).ids


def test_rows_slide_each_at_its_own_time(tiny: Model) -> None:
    prompts = [LETTERS[:n] for n in (3, 11, 20, 40)]
    options: dict[str, Any] = {"max_new_tokens": 40, "overflow": "slide", "pinned_tokens": 2, "batch_size": 3}
    together = complete(prompts, model=tiny, temperature=1.0, seed=2, **options)
    alone = [complete(prompt, model=tiny, temperature=1.0, seed=2, **options)[0] for prompt in prompts]
    assert [(one.ids, one.n_slides) for one in together] == [(one.ids, one.n_slides) for one in alone]


def test_a_pin_longer_than_the_prompt_pins_the_prompt(tiny: Model) -> None:
    expected = write(tiny, 3, 60, overflow="slide", pinned_tokens=3)
    assert write(tiny, 3, 60, overflow="slide", pinned_tokens=10).ids == expected.ids


@pytest.mark.parametrize(("n_pinned", "n_kept"), [(0, N // 2), (4, 14), (N // 2, 18)])
def test_a_slide_leaves_half_of_the_rest_free(n_pinned: int, n_kept: int) -> None:
    ids = list(range(40))
    window = slide(ids, n_pinned, N)
    assert len(window) == n_kept
    assert window == ids[:n_pinned] + ids[-(n_kept - n_pinned) :]


def test_conflicts_are_named(tiny: Model) -> None:
    with pytest.raises(ValueError, match=r"pinned_tokens.*slide"):
        generate("a", model=tiny, pinned_tokens=3)
    with pytest.raises(ValueError, match=f"pinned_tokens {N // 2 + 1}.*{N} positions"):
        generate("a", model=tiny, pinned_tokens=N // 2 + 1, overflow="slide")
    with pytest.raises(ValueError, match=r"overflow is 'wrap'.*truncate_left"):
        generate("a", model=tiny, overflow="wrap")  # type: ignore[arg-type]


def test_what_fits_is_kept_whatever_the_option() -> None:
    for overflow in ("error", "stop", "truncate_left", "slide"):
        options = Options(max_new_tokens=N - 5, overflow=overflow)
        assert fit_prompt(range(5), options, N) == list(range(5))
