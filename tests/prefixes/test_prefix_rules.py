"""The object that is a shared beginning: what it shows, where it may be used, and what is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime import Prefix, complete, generate, load, score, stream, stream_many
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.tasks.perform import TASKS
from runtime.tokenization.encode import encode
from tests.support.prefixing import STORY, facts, letters
from tests.support.prefixing import folders as folders
from tests.support.prefixing import tiny as tiny

# the object --------------------------------------------------------------------------------------------------------


def test_a_prefix_shows_its_size_and_cannot_be_changed(tiny: Model) -> None:
    prefix = runtime.prefix("\n" + letters(PREFILL_STEP), model=tiny)
    config = tiny.config
    item = 1 if tiny.cache == "int8" else 4
    assert prefix.nbytes == 2 * item * config.n_layer * config.n_embd * PREFILL_STEP
    assert repr(prefix).startswith(r"<Prefix '\n")
    assert f"{PREFILL_STEP + 1} tokens, {PREFILL_STEP} kept, {prefix.nbytes / 1e6:.1f} MB" in repr(prefix)
    with pytest.raises(ValueError, match="read-only"):
        prefix.keys_values[:] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        prefix.text = "other"  # type: ignore[misc]


def test_many_threads_use_one_prefix(tiny: Model) -> None:
    text = letters(PREFILL_STEP + 20)
    prefix, prompts = runtime.prefix(text, model=tiny), [text + letters(n) for n in range(8)]
    expected = [generate(prompt, model=tiny, max_new_tokens=9) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda prompt: generate(prompt, prefix=prefix, max_new_tokens=9), prompts)
        assert list(found) == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_model_opened_again_takes_it(folders: dict[str, Path], threads: int) -> None:
    text = letters(PREFILL_STEP + 20)
    with load(folders["int8"]) as one, load(folders["int8"], threads=threads) as other:
        prefix = runtime.prefix(text, model=one)
        assert facts(complete(text, prefix=prefix, model=other, logprobs=3)) == facts(
            complete(text, model=other, logprobs=3)
        )
        assert generate(text, prefix=prefix, model=str(folders["int8"])) == generate(text, model=other)


def test_a_plain_export_takes_it(demo_reference: Model) -> None:
    text = STORY[:1300]
    prefix, options = runtime.prefix(text[:1200], model=demo_reference), {"max_new_tokens": 5, "logprobs": 2}
    assert prefix.n_kept >= PREFILL_STEP
    assert facts(complete(text, prefix=prefix, **options)) == facts(  # type: ignore[arg-type]
        complete(text, model=demo_reference, **options)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["demo_fp32", "demo_reference"])
def test_rows_are_read_and_written(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    cache, other, ids = model.new_cache(12), model.new_cache(9), encode(model, STORY)[:8]
    cache.extend(ids)
    other.extend(ids[::-1])
    held = cache.read_row(0, 6)
    assert held.shape == (model.config.n_layer, 2, model.config.n_head, 6, model.config.head_dim)
    other.write_row(0, held)
    held[:] = 0  # both were copied
    assert other.lengths == [6]
    cache.clear_row(0)
    cache.extend(ids[:6])
    assert (other.extend(ids[6:]) == cache.extend(ids[6:])).all()
    other.write_row(0, held[:, :, :, :0])
    assert other.lengths == [0]
    if isinstance(other, InPlaceCache):
        with pytest.raises(ValueError, match="capacity of 9"):
            other.write_row(0, np.repeat(held, 2, axis=3))


# refused -----------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[str, Prefix], object]] = {
    "generate": lambda text, prefix: generate(text, prefix=prefix),
    "stream": lambda text, prefix: stream(text, prefix=prefix),
    "stream_many": lambda text, prefix: stream_many(["The end.", text], prefix=prefix),
    "complete": lambda text, prefix: complete(["The end.", text], prefix=prefix),
    "beams": lambda text, prefix: complete(["The end.", text], prefix=prefix, num_beams=2),
    "score": lambda text, prefix: score("and", context=text, prefix=prefix),
    "perform": lambda text, prefix: runtime.perform("answer", text, examples=(), prefix=prefix),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_text_that_begins_otherwise_is_refused(demo_fp32: Model, name: str) -> None:
    prefix = runtime.prefix("The end", model=demo_fp32)
    what, wrong = ("context", "The enemy") if name == "score" else ("prompt", "The enemy")
    if name == "perform":
        prefix = runtime.prefix(TASKS["answer"].beginning(examples=()) + "Where", model=demo_fp32)
    at = "character 6 the prefix has 'd' and the .* has 'emy'" if name != "perform" else "has 'Where' .* has 'The enemy"
    with pytest.raises(ValueError, match=f"the {what} does not begin with the prefix's text.*{at}"):
        CALLS[name](wrong, prefix)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_prefix_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"prefix is 'The end'; what runtime\.prefix"):
        CALLS[name]("The end.", "The end")  # type: ignore[arg-type]


def test_a_prompt_shorter_than_the_prefix_is_refused(demo_fp32: Model) -> None:
    prefix = runtime.prefix("The end. And then", model=demo_fp32)
    with pytest.raises(ValueError, match="at character 8 the prefix has ' And then' and the prompt ends"):
        generate("The end.", prefix=prefix)
    with pytest.raises(ValueError, match="the prompt ends"):
        generate("", prefix=prefix)


def test_another_model_is_refused(demo_fp32: Model, demo_int8: Model, demo_reference: Model) -> None:
    prefix = runtime.prefix("The end", model=demo_fp32)
    for other in (demo_int8, demo_reference):
        with pytest.raises(ValueError, match=r"of another model: .*demo-fp32, not .*demo-"):
            generate("The end.", prefix=prefix, model=other)


def test_a_closed_model_is_said(folders: dict[str, Path]) -> None:
    with load(folders["int8"]) as model:
        prefix = runtime.prefix("abc", model=model)
    with pytest.raises(ValueError, match="closed; load it again"):
        generate("abcd", prefix=prefix)
    with load(folders["int8"]) as again:
        assert generate("abcd", prefix=prefix, model=again) == generate("abcd", model=again)


@pytest.mark.parametrize(
    ("text", "options", "kind", "named"),
    [
        ("", {}, ValueError, "empty"),
        (letters(4 * PREFILL_STEP + 1), {}, ValueError, f"{4 * PREFILL_STEP + 1} tokens, .*{4 * PREFILL_STEP} pos"),
        (None, {}, TypeError, "text is None; a text"),
        ("\ud800", {}, ValueError, "surrogate"),
        ("abc", {"special_tokens": 1}, TypeError, "special_tokens is 1"),
    ],
)
def test_what_cannot_be_a_prefix_is_refused(
    tiny: Model, text: Any, options: dict[str, Any], kind: type[Exception], named: str
) -> None:
    with pytest.raises(kind, match=named):
        runtime.prefix(text, model=tiny, **options)


def test_a_prefix_as_long_as_the_context_serves_a_score(tiny: Model) -> None:
    text = letters(4 * PREFILL_STEP)
    prefix = runtime.prefix(text, model=tiny)
    assert score(text[-1], context=text, prefix=prefix) == score(text[-1], context=text, model=tiny)
