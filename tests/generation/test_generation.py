"""Texts that a model writes, beside transformers' own `generate` in fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from runtime import complete, generate, load, stream
from runtime.generation import row
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.tokenization.encode import encode, encode_prompt
from tests.conftest import DEMO

PROMPTS = {
    "English": "Once upon a time there was a little mouse who",
    "Spanish": "¿Qué tal, señor? El niño comió el último plátano y después",
    "emoji": "A party 🎉🙂👩‍👩‍👧 with",
    "whitespace": "  \n\n\t  ",
    "code": "def add(a, b):\n    return a + b\n\n\ndef",
    "newline at the end": "THE END.\n",
    "one token": "The",
    "nothing": "",
}
N_POSITIONS = 512


def torch_greedy(model: GPT2LMHeadModel, prompts: list[list[int]], n: int, eos: int = 0) -> list[list[int]]:
    """The ids that transformers adds to each prompt, all in one batch; the end of text is left out."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, "max_new_tokens": n, "pad_token_id": eos, "eos_token_id": eos}
    out = model.generate(ids, attention_mask=mask, **options)[:, longest:].tolist()
    return [added[: added.index(eos)] if eos in added else added for added in out]


def assert_greedy(model: GPT2LMHeadModel, prompt_ids: list[int], ids: list[int]) -> None:
    """Every id is the likeliest at its place, but for rounding: one pass, where `generate` takes one an id."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() < 1e-3


def text_of(model: Model, n_tokens: int) -> str:
    """A text of exactly so many tokens."""
    text = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
    ids = encode(model, text)
    candidates = (model.tokenizer.decode(ids[begin : begin + n_tokens]) for begin in range(len(ids)))
    return next(candidate for candidate in candidates if len(encode(model, candidate)) == n_tokens)


@pytest.fixture
def own_model(demo_fp32_folder: Path) -> Iterator[Model]:
    """A model to change, and to close."""
    with load(demo_fp32_folder) as model:
        yield model


# the same ids as transformers --------------------------------------------------------------------------------------


def test_greedy_ids_are_those_of_transformers(demo_fp32: Model, torch_demo: GPT2LMHeadModel) -> None:
    prompt_ids = [encode_prompt(demo_fp32, prompt) for prompt in PROMPTS.values()]
    expected = torch_greedy(torch_demo, prompt_ids, 110)
    ours = {name: complete(prompt, model=demo_fp32, max_new_tokens=110)[0] for name, prompt in PROMPTS.items()}
    assert {name: one.ids for name, one in ours.items()} == dict(zip(PROMPTS, expected, strict=True))
    assert [one.text for one in ours.values()] == [demo_fp32.tokenizer.decode(ids) for ids in expected]


@pytest.mark.parametrize("name", PROMPTS)
def test_the_text_is_that_of_the_greedy_ids(demo_fp32: Model, name: str) -> None:
    [one] = complete(PROMPTS[name], model=demo_fp32, max_new_tokens=30)
    assert generate(PROMPTS[name], model=demo_fp32, max_new_tokens=30) == one.text
    assert one.text == demo_fp32.tokenizer.decode(one.ids)


def test_a_prompt_of_several_passes_continues_greedily(demo_fp32: Model, torch_demo: GPT2LMHeadModel) -> None:
    prompt = text_of(demo_fp32, PREFILL_STEP + 100)
    [ours] = complete(prompt, model=demo_fp32, max_new_tokens=100)
    assert_greedy(torch_demo, encode(demo_fp32, prompt), ours.ids)


def test_an_empty_prompt_is_the_beginning_of_a_text(demo_fp32: Model, torch_demo: GPT2LMHeadModel) -> None:
    [ours] = complete("", model=demo_fp32, max_new_tokens=20)
    assert_greedy(torch_demo, [demo_fp32.config.bos_token_id], ours.ids)


def test_the_end_of_text_ends_the_text_and_is_not_shown(own_model: Model, torch_demo: GPT2LMHeadModel) -> None:
    prompt_ids = encode(own_model, PROMPTS["English"])
    eos = complete(PROMPTS["English"], model=own_model, max_new_tokens=12)[0].ids[-1]
    [expected] = torch_greedy(torch_demo, [prompt_ids], 20, eos=eos)
    own_model.config = dataclasses.replace(own_model.config, eos_token_ids=frozenset({eos, 8000}))
    [ours] = complete(PROMPTS["English"], model=own_model, max_new_tokens=20)
    assert len(expected) < 12
    assert (ours.ids, ours.finish_reason) == (expected, "eos")
    assert generate(PROMPTS["English"], model=own_model) == own_model.tokenizer.decode(expected)


def test_a_text_that_ends_at_once_is_empty(own_model: Model, passes: list[int]) -> None:
    everything = frozenset(range(own_model.config.vocab_size))
    own_model.config = dataclasses.replace(own_model.config, eos_token_ids=everything)
    assert generate("The end", model=own_model) == ""
    assert list(stream("The end", model=own_model)) == []
    assert len(passes) == 2  # a prefill each


# length ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_prompt", "n_new"), [(1, 511), (480, 32), (511, 1)])
def test_the_whole_context_can_be_used(
    demo_fp32: Model, torch_demo: GPT2LMHeadModel, n_prompt: int, n_new: int
) -> None:
    prompt = text_of(demo_fp32, n_prompt)
    [ours] = complete(prompt, model=demo_fp32, max_new_tokens=n_new)
    assert len(ours.ids) == n_new
    assert_greedy(torch_demo, encode(demo_fp32, prompt), ours.ids)


@pytest.mark.parametrize(("n_prompt", "n_new"), [(480, 33), (511, 2), (1, 512), (449, 64)])
def test_one_token_too_many_is_refused_with_the_numbers(demo_fp32: Model, n_prompt: int, n_new: int) -> None:
    prompt = text_of(demo_fp32, n_prompt)
    with pytest.raises(ValueError) as error:
        stream(prompt, model=demo_fp32, max_new_tokens=n_new)
    numbers = [n_prompt, n_new, N_POSITIONS, N_POSITIONS - n_prompt]
    assert all(str(number) in str(error.value) for number in numbers)
    generate(prompt, model=demo_fp32, max_new_tokens=1)


@pytest.mark.parametrize("n_prompt", [N_POSITIONS, N_POSITIONS + 1, 700])
def test_a_prompt_that_leaves_no_room_is_refused(demo_fp32: Model, n_prompt: int) -> None:
    with pytest.raises(ValueError, match=rf"{n_prompt} tokens.*must be under {N_POSITIONS}"):
        generate(text_of(demo_fp32, n_prompt), model=demo_fp32, max_new_tokens=1)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_max_new_tokens_is_the_number_of_passes(demo_fp32: Model, passes: list[int], n: int) -> None:
    [ours] = complete("The old king", model=demo_fp32, max_new_tokens=n)
    assert len(ours.ids) == n
    assert passes == [len(encode(demo_fp32, "The old king"))] + [1] * (n - 1)


def test_a_long_prompt_is_prefilled_in_passes_of_bounded_size(demo_fp32: Model, passes: list[int]) -> None:
    generate(text_of(demo_fp32, 500), model=demo_fp32, max_new_tokens=1)
    assert passes == [PREFILL_STEP, 500 - PREFILL_STEP]


# pieces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "seed": 5}, {"stop": ["the ", "."]}], ids=repr)
@pytest.mark.parametrize("name", ["English", "Spanish", "emoji", "nothing"])
def test_pieces_join_to_the_text(demo_fp32: Model, name: str, options: dict[str, Any]) -> None:
    pieces = list(stream(PROMPTS[name], model=demo_fp32, max_new_tokens=60, **options))
    assert "".join(pieces) == generate(PROMPTS[name], model=demo_fp32, max_new_tokens=60, **options)
    assert all(pieces)
    assert len(pieces) > 1 or options.get("stop")


def scripted(monkeypatch: pytest.MonkeyPatch, model: Model, script: bytes) -> dict[str, Any]:
    """Make the model write these bytes, a token each; returns the options to ask it with."""
    ids = [model.tokenizer.token_to_id(bytes_to_unicode()[byte]) for byte in script]
    monkeypatch.setattr(row, "make_sampler", lambda *_args, **_options: lambda _logits, step: ids[step])
    return {"model": model, "max_new_tokens": len(ids)}


def test_no_piece_ends_inside_a_character(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "¿Qué tal? 🙂👩‍👩‍👧 中文 ñ"
    assert list(stream("Once", **scripted(monkeypatch, demo_fp32, text.encode()))) == list(text)


def test_bytes_that_are_no_character_come_as_the_tokenizer_shows_them(
    demo_fp32: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = b"a\xffb\xf0\x9f\x99c\xe4\xb8"
    pieces = list(stream("Once", **scripted(monkeypatch, demo_fp32, script)))
    assert "".join(pieces) == script.decode(errors="replace")
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("stop", "expected"), [("aab", "a"), (["b c", "b"], "aaa"), ("é", "aaab c"), (["a", "aa"], ""), ("caf", "aaab cé ")]
)
def test_the_text_ends_before_a_stop_string(
    demo_fp32: Model, monkeypatch: pytest.MonkeyPatch, stop: Any, expected: str
) -> None:
    options = scripted(monkeypatch, demo_fp32, "aaab cé caf".encode())
    assert generate("Once", stop=stop, **options) == expected
    assert "".join(stream("Once", stop=stop, **options)) == expected


def test_a_stop_string_in_the_prompt_does_not_end_the_text(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    options = scripted(monkeypatch, demo_fp32, b"pon a time")
    assert generate("Once u", stop=["Once", "Once u", "up"], **options) == "pon a time"


def test_a_stop_string_ends_the_work(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch, passes: list[int]) -> None:
    assert generate("Once", stop="c", **scripted(monkeypatch, demo_fp32, b"abcdefgh")) == "ab"
    assert len(passes) == 3


def test_the_work_follows_the_reader(demo_fp32: Model, passes: list[int]) -> None:
    pieces = stream("The old king", model=demo_fp32, max_new_tokens=100)
    assert passes == []
    next(pieces)
    first = len(passes)
    assert first <= 3
    next(pieces)
    assert first < len(passes) <= first + 3
    before = len(passes)
    pieces.close()  # type: ignore[attr-defined]
    assert (list(pieces), len(passes)) == ([], before)
