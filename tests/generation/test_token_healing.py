"""Token healing: the last token of a prompt may grow, and the prompt's text stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime import complete, stream
from runtime.generation.token_healing import heal
from runtime.model.model import Model
from runtime.tokenization.encode import encode
from tests.support import oracle

CUT = ["Once upon a ti", "The little mou", "He said noth", "She looked at the beaut"]
WHOLE = ["Once upon a time", "THE END.\n", "A party 🎉", "¿Qué tal, señ", "def add(a,", "a <"]


def healed(prompt: str, n: int) -> tuple[str, list[int]]:
    """The whole text and the new ids, by transformers' logits and the tokens whose text begins with the last one's."""
    tokenizer, model = oracle.demo_tokenizer(), oracle.demo()
    ids = tokenizer.encode(prompt)
    vocabulary = tokenizer.get_vocab()
    end: Any = tokenizer.convert_ids_to_tokens(ids[-1])
    allowed = [i for token, i in vocabulary.items() if token.startswith(end) and i not in tokenizer.all_special_ids]
    before: Any = tokenizer.decode(ids[:-1])
    whole_characters = prompt.startswith(before)
    ids = ids[:-1] if whole_characters else ids
    n_before = len(ids)
    for step in range(n):
        row = oracle.logprobs(model, ids)[-1]
        if step == 0 and whole_characters:
            mask = np.full_like(row, -np.inf)
            mask[allowed] = 0
            row = row + mask
        if (best := int(row.argmax())) in tokenizer.all_special_ids:
            break
        ids.append(best)
    return tokenizer.decode(ids), ids[n_before:]


@pytest.mark.parametrize("prompt", CUT + WHOLE)
def test_a_healed_prompt_continues_as_an_independent_implementation_does(demo_fp32: Model, prompt: str) -> None:
    text, ids = healed(prompt, 12)
    [found] = complete(prompt, model=demo_fp32, max_new_tokens=12, token_healing=True)
    assert (found.ids, prompt + found.text) == (ids, text)
    assert "".join(stream(prompt, model=demo_fp32, max_new_tokens=12, token_healing=True)) == found.text


def test_healing_changes_a_cut_word(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 6}
    plain, found = (complete("Once upon a ti", token_healing=on, **options)[0].text for on in (False, True))
    assert plain != found


@pytest.mark.parametrize("prompt", ["a", "", "A party 🧿"])
def test_what_cannot_be_healed_is_continued_as_it_is(demo_fp32: Model, prompt: str) -> None:
    """One token has nothing before it; the last token of the other is a part of a character."""
    plain, found = (complete(prompt, model=demo_fp32, max_new_tokens=5, token_healing=on)[0] for on in (False, True))
    assert plain.ids == found.ids


def test_only_tokens_of_text_are_allowed(demo_fp32: Model) -> None:
    """`<` begins the name of the end of text, which is no text."""
    ids = encode(demo_fp32, "a <")
    healing = heal(demo_fp32.tokenizer, ids)
    assert healing is not None
    assert ids[-1] in healing.allowed
    assert not set(healing.allowed.tolist()) & set(demo_fp32.config.eos_token_ids)


def test_a_special_token_at_the_end_is_left_alone(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 5, "special_tokens": True}
    plain, found = (complete("The end<|endoftext|>", token_healing=on, **options)[0] for on in (False, True))
    assert plain.ids == found.ids


def test_a_token_that_completes_a_character_is_left_alone(demo_fp32: Model) -> None:
    ids = encode(demo_fp32, "a party 🧿")
    assert len(ids) > len(encode(demo_fp32, "a party ")) + 1  # the character takes several tokens
    assert heal(demo_fp32.tokenizer, ids) is None
    assert heal(demo_fp32.tokenizer, ids[:-1]) is None


def test_sampled_and_batched_prompts_are_healed_too(demo_fp32: Model) -> None:
    options: dict[str, Any] = {
        "model": demo_fp32,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "seed": 1,
        "token_healing": True,
    }
    together = complete(CUT, **options)
    assert [one.ids for one in together] == [complete(prompt, **options)[0].ids for prompt in CUT]
    for prompt, one in zip(CUT, together, strict=True):
        ids = encode(demo_fp32, prompt)[:-1] + one.ids
        assert demo_fp32.tokenizer.decode(ids) == prompt + one.text


def test_a_stop_string_is_not_found_in_the_prompts_own_end(demo_fp32: Model) -> None:
    [found] = complete("Once upon a ti", model=demo_fp32, max_new_tokens=6, token_healing=True, stop=["ti", "tim"])
    assert (found.text, found.finish_reason) == (healed("Once upon a ti", 6)[0][len("Once upon a ti") :], "length")
