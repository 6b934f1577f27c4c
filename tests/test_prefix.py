"""A shared beginning: with it and without, every call gives the same to the last bit; only the rest is computed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtime
from runtime import Prefix, complete, generate, load, score, stream, stream_many
from runtime.cache import InPlaceCache
from runtime.completion import Completion
from runtime.grid import PREFILL_STEP
from runtime.model import Model
from runtime.shared_prefix import known
from runtime.tasks import TASKS, Task
from runtime.text import encode
from tests.checkpoints import build_model, write_checkpoint
from tests.conftest import DEMO

STORY = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
SPANISH = "¿Qué tal, señor? El niño comió el último plátano 🎉🙂👩‍👩‍👧 y después... "
LONG = 2 * PREFILL_STEP + 88  # tokens
few = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of four steps, whose tokens are bytes, in both precisions."""
    checkpoint = tmp_path_factory.mktemp("prefix") / "tiny"
    write_checkpoint(checkpoint, n_positions=4 * PREFILL_STEP, n_layer=2)
    return {"int8": build_model(checkpoint, "int8", 64), "fp32": build_model(checkpoint)}


@pytest.fixture(scope="module", params=["int8", "fp32"])
def tiny(folders: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(folders[request.param]) as model:
        yield model


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids each pass of a prefill takes."""
    taken: list[int] = []
    original = InPlaceCache.extend

    def counted(cache: InPlaceCache, ids: Any, **rest: Any) -> Any:
        taken.append(len(ids))
        return original(cache, ids, **rest)

    monkeypatch.setattr(InPlaceCache, "extend", counted)
    return taken


def letters(n: int, seed: int = 0) -> str:
    """A text of so many tokens of the tiny model."""
    return "".join(np.random.default_rng(seed).choice(list("abcdefgh .,"), n))


def facts(completions: list[Completion]) -> list[Any]:
    """All but how long it took."""
    return [dataclasses.replace(one, prefill_seconds=0, decode_seconds=0) for one in completions]


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


# tasks -------------------------------------------------------------------------------------------------------------

PAIRS = [(f"How old is child number {n}?", f"{n} years old") for n in range(19)]
PASSAGE = STORY[:1400].strip()


@pytest.mark.parametrize(
    ("task", "text", "fields"),
    [
        ("answer", "What do bees make?", {"examples": PAIRS}),
        ("translate", "Where is the train?", {"examples": PAIRS}),
        ("summarize", "The king was old.", {"examples": PAIRS, "seed": 3}),
        (Task("chat", "{rules}\nQ: {text}\nA:", fields={"rules": PASSAGE}), "Who?", {}),
    ],
    ids=["answer", "translate", "summarize", "chat"],
)
@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8"])
def test_tasks_answer_as_without(
    request: pytest.FixtureRequest, name: str, task: str | Task, text: str, fields: dict[str, Any], passes: list[int]
) -> None:
    model, found = request.getfixturevalue(name), TASKS[task] if isinstance(task, str) else task
    own = {name: value for name, value in fields.items() if name in found.fields}
    beginning = found.beginning(**own)
    assert found.prompt(text, **own).startswith(beginning)
    assert not beginning or found.prompt("Another", **own).startswith(beginning)
    prefix = runtime.prefix(beginning, model=model)
    shared: dict[str, Any] = {"max_new_tokens": 12, **fields}
    expected = runtime.perform(task, text, model=model, **shared)
    passes.clear()
    answer = runtime.perform(task, text, prefix=prefix, **shared)
    assert passes[0] < PREFILL_STEP < len(encode(model, found.prompt(text, **own)))
    assert (answer.text, answer.confidence) == (expected.text, expected.confidence)
    assert facts([answer.completion]) == facts([expected.completion])  # type: ignore[list-item]
    assert generate(text, task=task, prefix=prefix, **shared) == answer.text


@pytest.mark.parametrize(
    ("task", "text", "fields"),
    [
        ("choose", f"{PASSAGE} The fox was", {"options": ["red", "very hungry", "a mole"]}),
        ("choose", f"{PASSAGE} The _ was hungry.", {"options": ["fox", "old mole"]}),
        ("choose", f"{PASSAGE} The _ was hungry.", {"options": ["fox", "old mole"], "scoring": "partial"}),
        ("last_word", f"{PASSAGE} She opened the door and went into the", {}),
        ("read", PASSAGE, {"question": "Who woke?", "max_new_tokens": 8}),
        ("read", "x " * 60 + PASSAGE, {"question": "Who?", "max_new_tokens": 99, "overflow": "truncate_left"}),
    ],
)
def test_tasks_that_begin_with_the_text_answer_as_without(
    demo_int8: Model, task: str, text: str, fields: dict[str, Any], passes: list[int]
) -> None:
    assert TASKS[task].beginning(**{name: fields[name] for name in fields.keys() & TASKS[task].fields.keys()}) == ""
    prefix = runtime.prefix(text[: len(PASSAGE)], model=demo_int8)
    expected = runtime.perform(task, text, model=demo_int8, **fields)
    passes.clear()
    answer = runtime.perform(task, text, prefix=prefix, **fields)
    assert (answer.text, answer.confidence) == (expected.text, expected.confidence)
    assert dict(answer.probabilities) == dict(expected.probabilities)
    assert answer.n_truncated == expected.n_truncated
    assert answer.n_truncated or passes[0] < PREFILL_STEP


def test_a_beginning_takes_braces_and_digits_as_text() -> None:
    task = Task("odd", "{{text}} 0 {rules}1{text}, {text}", fields={"rules": "{0}"})
    assert task.beginning() == "{text} 0 {0}1"
    with pytest.raises(TypeError, match="'colour' is no field"):
        task.beginning(colour="red")


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


# the object --------------------------------------------------------------------------------------------------------


def test_a_prefix_shows_its_size_and_cannot_be_changed(tiny: Model) -> None:
    prefix = runtime.prefix("\n" + letters(PREFILL_STEP), model=tiny)
    config = tiny.config
    assert prefix.nbytes == 8 * config.n_layer * config.n_embd * PREFILL_STEP
    assert repr(prefix).startswith(r"<Prefix '\n")
    assert f"{PREFILL_STEP + 1} tokens, {PREFILL_STEP} kept, 0.3 MB" in repr(prefix)
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
        (None, {}, TypeError, "NoneType"),
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
