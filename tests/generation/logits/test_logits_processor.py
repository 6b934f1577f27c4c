"""A caller's own function between penalties and sampler."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

import runtime
from runtime.errors import OptionError
from runtime.generation.logits.logits_processor import ProcessorFailed, process
from runtime.model.model import Model
from runtime.options import Options
from runtime.tokenization.encode import encode_prompt

Logits = NDArray[np.float32]
PROMPT = "Once upon a time there was a little mouse who"
OTHER = "The old king had"


def alternate(ids: Sequence[int], logits: Logits) -> Logits:
    """Halve every logit that is above 0, and forbid even and odd ids in turn."""
    logits[len(ids) % 2 :: 2] = -np.inf
    return np.where(logits > 0, logits / 2, logits)


class Alternate(LogitsProcessor):
    """`alternate`, for transformers."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        changed = [alternate(ids, row) for ids, row in zip(input_ids.tolist(), scores.numpy().copy(), strict=True)]
        return torch.from_numpy(np.stack(changed))


@pytest.mark.parametrize("more", [{}, {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}], ids=repr)
def test_the_ids_are_those_of_transformers(demo_fp32: Model, torch_demo: GPT2LMHeadModel, more: dict[str, Any]) -> None:
    [one] = runtime.complete(PROMPT, model=demo_fp32, max_new_tokens=20, logits_processor=alternate, **more)
    ids = encode_prompt(demo_fp32, PROMPT)
    processors: Any = LogitsProcessorList([Alternate()])
    given = torch.tensor([ids])
    model: Any = torch_demo
    theirs = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=20,
        do_sample=False,
        logits_processor=processors,
        pad_token_id=0,
        **more,
    )
    assert one.ids == theirs[0, len(ids) :].tolist()[: one.n_tokens]
    assert one.n_tokens > 5


def test_every_way_of_generating_uses_it(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 12, "logits_processor": alternate}
    text = runtime.generate(PROMPT, **options)
    assert text != runtime.generate(PROMPT, model=demo_fp32, max_new_tokens=12)
    assert "".join(runtime.stream(PROMPT, **options)) == text
    many = list(runtime.stream_many([OTHER, PROMPT], **options))
    assert "".join(piece for index, piece in many if index == 1) == text
    assert runtime.complete([OTHER, PROMPT], **options)[1].text == text


@pytest.mark.parametrize("speculation", [{}, {"lookup": 6}, {"draft": True}], ids=repr)
def test_it_is_called_once_for_each_id_with_the_ids_before(demo_fp32: Model, speculation: dict[str, Any]) -> None:
    seen: list[tuple[int, ...]] = []

    def watch(ids: Sequence[int], logits: Logits) -> Logits:
        seen.append(tuple(ids))
        assert (logits.dtype, logits.shape) == (np.float32, (demo_fp32.config.vocab_size,))
        return logits

    more = {"draft": demo_fp32} if "draft" in speculation else speculation
    prompt = "one two three one two three one two"
    plain = runtime.complete(prompt, model=demo_fp32, max_new_tokens=16)[0].ids
    [one] = runtime.complete(prompt, model=demo_fp32, max_new_tokens=16, logits_processor=watch, **more)
    assert one.ids == plain
    before = encode_prompt(demo_fp32, prompt)
    assert seen[: one.n_tokens] == [(*before, *one.ids[:n]) for n in range(one.n_tokens)]
    assert len(seen) <= one.n_tokens + 1


def test_it_comes_after_penalties_and_before_bans(demo_fp32: Model) -> None:
    seen: list[Logits] = []

    def keep(_ids: Sequence[int], logits: Logits) -> Logits:
        seen.append(logits.copy())
        logits[:] = 0
        return logits

    every = {"model": demo_fp32, "max_new_tokens": 1, "logits_processor": keep}
    [one] = runtime.complete(PROMPT, suppress_ids=[5], logit_bias={7: 100.0}, banned="!", **every)
    assert seen[0][5] == -np.inf
    assert seen[0].argmax() == 7
    # All tokens are equal after it, and the first that is not banned is taken.
    assert "!" not in one.text


def test_what_it_writes_does_not_reach_the_record(demo_fp32: Model) -> None:
    def spoil(_ids: Sequence[int], logits: Logits) -> Logits:
        best = int(logits.argmax())
        logits[:] = -50
        logits[best] = 0
        return logits

    [free] = runtime.complete(PROMPT, model=demo_fp32, max_new_tokens=6)
    [one] = runtime.complete(PROMPT, model=demo_fp32, max_new_tokens=6, logits_processor=spoil)
    assert (one.ids, one.logprobs) == (free.ids, free.logprobs)


def test_inf_makes_a_token_certain(demo_fp32: Model) -> None:
    def force(ids: Sequence[int], logits: Logits) -> Logits:
        logits[len(ids) % 3 + 40] = np.inf
        return logits

    [one] = runtime.complete(PROMPT, model=demo_fp32, max_new_tokens=5, temperature=1.0, logits_processor=force)
    n_prompt = len(encode_prompt(demo_fp32, PROMPT))
    assert one.ids == [(n_prompt + n) % 3 + 40 for n in range(5)]


def test_where_it_forbids_everything_there_is_no_token(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"logits_processor": lambda _ids, logits: np.full_like(logits, -np.inf)}
    assert runtime.complete(PROMPT, model=demo_fp32, **options)[0].finish_reason == "no_token"
    with pytest.raises(runtime.NoTokenError, match="logits_processor"):
        runtime.generate(PROMPT, model=demo_fp32, **options)


# failures ----------------------------------------------------------------------------------------------------------


def failing_after(prompt: Sequence[int], n: int) -> Callable[[Sequence[int], Logits], Logits]:
    def fail(ids: Sequence[int], logits: Logits) -> Logits:
        if ids[: len(prompt)] == tuple(prompt) and len(ids) - len(prompt) == n:
            raise KeyError("mine")
        return logits

    return fail


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("speculation", [{}, {"lookup": 4}], ids=repr)
def test_an_error_ends_its_row_alone(demo_fp32: Model, n: int, speculation: dict[str, Any]) -> None:
    fail = failing_after(encode_prompt(demo_fp32, PROMPT), n)
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 8, **speculation}
    free = runtime.complete([PROMPT, OTHER, PROMPT], **options)
    failed, whole, again = runtime.complete([PROMPT, OTHER, PROMPT], logits_processor=fail, **options)
    assert (failed.finish_reason, failed.ids) == ("error", free[0].ids[:n])
    assert (type(failed.error), str(failed.error)) == (KeyError, "'mine'")
    assert (whole.finish_reason, whole.ids, whole.error) == ("length", free[1].ids, None)
    assert again.finish_reason == "error"


def test_generate_and_stream_raise_it(demo_fp32: Model) -> None:
    fail = failing_after(encode_prompt(demo_fp32, PROMPT), 2)
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 6, "logits_processor": fail}
    with pytest.raises(KeyError, match="mine"):
        runtime.generate(PROMPT, **options)
    pieces: list[str] = []
    with pytest.raises(KeyError, match="mine"):
        pieces.extend(runtime.stream(PROMPT, **options))
    many: list[tuple[int, str]] = []
    with pytest.raises(KeyError, match="mine"):
        many.extend(runtime.stream_many([PROMPT, OTHER], **options))
    whole = runtime.generate(OTHER, model=demo_fp32, max_new_tokens=6)
    assert "".join(piece for index, piece in many if index == 1) == whole
    assert "".join(piece for index, piece in many if index == 0) == "".join(pieces) != ""


def test_what_ends_a_program_is_not_kept(demo_fp32: Model) -> None:
    def interrupt(_ids: Sequence[int], _logits: Logits) -> Logits:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runtime.complete(PROMPT, model=demo_fp32, logits_processor=interrupt)


def test_the_error_keeps_no_frame_of_the_runtime(demo_fp32: Model) -> None:
    one = runtime.complete(PROMPT, model=demo_fp32, logits_processor=lambda ids, _logits: ids[10**9])[0]
    assert one.error is not None
    names = []
    trace = one.error.__traceback__
    while trace:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names == ["<lambda>"]


@pytest.mark.parametrize(
    ("result", "kind", "told"),
    [
        (lambda _: None, TypeError, r"returned None; a float32 array of shape \(5,\) is expected, the one"),
        (lambda logits: logits.tolist(), TypeError, r"returned a list; a float32 array of shape \(5,\)"),
        (lambda logits: logits.astype(np.float64), TypeError, r"an array of float64; .*astype\(np\.float32\)"),
        (lambda logits: logits[:4], ValueError, r"an array of shape \(4,\); a float32 array of shape \(5,\)"),
        (lambda logits: logits[None], ValueError, r"an array of shape \(1, 5\)"),
        (lambda logits: np.where(np.arange(5) == 3, np.nan, logits).astype("f4"), ValueError, "NaN for token id 3"),
    ],
)
def test_what_are_no_logits_is_said(result: Callable[[Logits], Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(ProcessorFailed) as failed:
        process(lambda _ids, logits: result(logits), [1, 2], np.zeros(5, np.float32))
    with pytest.raises(kind, match=told):
        raise failed.value.error


def test_a_wrong_array_ends_a_row_as_an_error_does(demo_fp32: Model) -> None:
    def short(_ids: Sequence[int], logits: Logits) -> Logits:
        return logits[:-1]

    [one] = runtime.complete(PROMPT, model=demo_fp32, logits_processor=short)
    assert (one.finish_reason, type(one.error), one.ids) == ("error", ValueError, [])
    with pytest.raises(ValueError, match="logits_processor returned an array of shape"):
        runtime.generate(PROMPT, model=demo_fp32, logits_processor=short)


def test_it_is_a_function() -> None:
    with pytest.raises(TypeError, match="logits_processor is 3; a function from token ids and logits to logits"):
        Options(logits_processor=3)  # type: ignore[arg-type]


def test_beams_refuse_it(demo_fp32: Model) -> None:
    with pytest.raises(OptionError, match="logits_processor does not go with num_beams 2"):
        runtime.complete(PROMPT, model=demo_fp32, num_beams=2, logits_processor=alternate)


def test_a_failed_completion_keeps_no_row_alive(demo_fp32: Model) -> None:
    class Held:
        pass

    held = Held()
    watched = weakref.ref(held)

    def fail(_ids: Sequence[int], _logits: Logits, held: Held = held) -> Logits:
        raise ValueError(str(held is None))

    [one] = runtime.complete(PROMPT, model=demo_fp32, logits_processor=fail)
    shown = dataclasses.replace(one, error=None)
    del fail, held, one
    gc.collect()
    assert watched() is None
    assert shown.finish_reason == "error"
