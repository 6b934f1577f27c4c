"""Several continuations at once: each is the one its prompt has alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import complete, generate, score_text, stream, stream_many
from runtime.generation import batch
from runtime.generation.completion import Completion
from runtime.model.kv_cache import Cache
from runtime.model.model import Model
from runtime.tokenization.encode import encode
from tests.support import oracle
from tests.support.checkpoints import build_model, write_checkpoint

PROMPT = "Once upon a time there was a little mouse who"
PROMPTS = ["", "The", PROMPT, "¿Qué tal, señor? El niño", "A party 🎉🙂 with", "THE END.\n", PROMPT]
few = settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 5}


def ids_of(found: Sequence[Completion]) -> list[list[int]]:
    return [one.ids for one in found]


def collect(prompts: Sequence[str], **options: Any) -> list[str]:
    texts = [""] * len(prompts)
    for index, piece in stream_many(prompts, **options):
        texts[index] += piece
    return texts


# as if alone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8"])
@few
@given(
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=5),
    n=st.integers(1, 3),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 99),
    stop=st.sampled_from([(), ("the", "."), ("a",)]),
)
def test_every_continuation_is_the_one_it_is_alone(
    request: pytest.FixtureRequest,
    name: str,
    prompts: list[str],
    n: int,
    batch_size: int,
    seed: int,
    stop: tuple[str, ...],
) -> None:
    shared: dict[str, Any] = {"model": request.getfixturevalue(name), "max_new_tokens": 12, "stop": stop}
    shared |= {"temperature": 1.0, "seed": seed}
    found = complete(prompts, n=n, batch_size=batch_size, **shared)
    alone = [complete(prompt, n=n, batch_size=1, **shared) for prompt in prompts]
    assert ids_of(found) == [ids for one in alone for ids in ids_of(one)]
    assert [(one.prompt_index, one.sample_index) for one in found] == [
        (index, sample) for index in range(len(prompts)) for sample in range(n)
    ]
    first = [one.text for one in found if one.sample_index == 0]
    assert first == ["".join(stream(prompt, **shared)) for prompt in prompts]
    assert first == collect(prompts, batch_size=batch_size, **shared)


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8"])
def test_rows_that_end_at_different_times_leave_the_others_alone(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    options: dict[str, Any] = {"model": model, "max_new_tokens": 30, "stop": [" the", ",", "."]}
    found = complete(PROMPTS, batch_size=3, **options)
    assert ids_of(found) == [complete(prompt, **options)[0].ids for prompt in PROMPTS]
    assert len({one.n_tokens for one in found}) > 2


def test_the_same_prompt_is_computed_once(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled: list[int] = []
    original = batch.prefill

    def counted(cache: Cache, ids: Sequence[int], *rest: Any) -> Any:
        prefilled.append(len(ids))
        return original(cache, ids, *rest)

    monkeypatch.setattr(batch, "prefill", counted)
    found = complete(PROMPT, n=4, model=demo_fp32, max_new_tokens=10, **SAMPLED)
    assert len(prefilled) == 1
    assert len({tuple(one.ids) for one in found}) == 4
    assert found[0].ids == complete(PROMPT, model=demo_fp32, max_new_tokens=10, **SAMPLED)[0].ids


@pytest.mark.parametrize("block_size", [32, 64])
def test_no_block_size_lets_a_row_see_its_neighbours(tmp_path: Path, block_size: int) -> None:
    write_checkpoint(tmp_path / "tiny", n_layer=2)
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3, "n": 2}
    with Model(build_model(tmp_path / "tiny", "int8", block_size), threads=1) as model:
        prompts = ["a", "bcd", "efghijk" * 5]
        together = complete(prompts, model=model, **options)
        assert ids_of(together) == [
            ids for prompt in prompts for ids in ids_of(complete(prompt, model=model, **options))
        ]


def test_greedy_rows_are_what_generate_writes(demo_int8: Model) -> None:
    found = complete(PROMPTS, model=demo_int8, max_new_tokens=20)
    assert [one.text for one in found] == [generate(p, model=demo_int8, max_new_tokens=20) for p in PROMPTS]


# log-probabilities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3, "repetition_penalty": 1.3}], ids=repr)
def test_logprobs_are_those_of_transformers(demo_fp32: Model, options: dict[str, Any]) -> None:
    for one in complete(["The", PROMPT], model=demo_fp32, max_new_tokens=12, logprobs=5, **options):
        prompt_ids = encode(demo_fp32, ["The", PROMPT][one.prompt_index])
        rows = oracle.logprobs(oracle.demo(), prompt_ids + one.ids)[len(prompt_ids) - 1 : -1]
        expected = rows[np.arange(12), one.ids]
        np.testing.assert_allclose(one.logprobs, expected, atol=1e-4)
        assert one.logprob == pytest.approx(sum(one.logprobs))
        for row, top in zip(rows, one.top_logprobs, strict=True):
            assert list(top.values()) == sorted(top.values(), reverse=True)
            np.testing.assert_allclose(list(top.values()), np.sort(row)[::-1][:5], atol=1e-4)
            np.testing.assert_allclose([row[id_] for id_ in top], list(top.values()), atol=1e-4)


def test_as_many_alternatives_as_there_are_tokens(demo_fp32: Model) -> None:
    n_vocab = demo_fp32.config.vocab_size
    [one] = complete("The", model=demo_fp32, max_new_tokens=1, logprobs=n_vocab)
    assert sorted(one.top_logprobs[0]) == list(range(n_vocab))
    assert np.exp(list(one.top_logprobs[0].values())).sum() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=str(n_vocab)):
        complete("The", model=demo_fp32, logprobs=n_vocab + 1)
    assert complete("The", model=demo_fp32, max_new_tokens=2)[0].top_logprobs == []


# why it ended ------------------------------------------------------------------------------------------------------


def test_every_reason_to_end(demo_fp32: Model) -> None:
    eos = next(iter(demo_fp32.config.eos_token_ids))
    greedy = complete(PROMPT, model=demo_fp32, max_new_tokens=5)[0]
    reasons: dict[str, dict[str, Any]] = {
        "eos": {"logit_bias": {eos: 1000.0}},
        "stop": {"stop_ids": [greedy.ids[2]]},
        "length": {"max_new_tokens": 3},
        "context": {"overflow": "stop", "max_new_tokens": 600, "logit_bias": {eos: -1000.0}},
        "deadline": {"deadline": 1e-9},
        "cancelled": {"cancel": lambda: True},
    }
    found = {why: complete(PROMPT, model=demo_fp32, **options)[0] for why, options in reasons.items()}
    assert {why: one.finish_reason for why, one in found.items()} == {why: why for why in reasons}
    assert [found[why].ids for why in ("eos", "deadline", "cancelled")] == [[], [], []]
    assert found["stop"].ids == greedy.ids[:2]
    assert complete(PROMPT, model=demo_fp32, stop=greedy.text[5:9])[0].finish_reason == "stop"


# refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "named"),
    [
        ({"n": 2}, ValueError, "temperature"),
        ({"n": 0}, ValueError, "n is 0"),
        ({"n": 65_537, "temperature": 1}, ValueError, "n is 65537.*at most 65536"),
        ({"num_beams": 10**30}, ValueError, "num_beams is 1.*at most 65536"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"logprobs": -1}, ValueError, "logprobs is -1"),
        ({"colour": "red"}, TypeError, "'colour' is not an option"),
        ({"length_penalty": 2.0}, ValueError, "num_beams"),
    ],
)
def test_wrong_use_is_refused_by_name(
    demo_fp32: Model, options: dict[str, Any], kind: type[Exception], named: str
) -> None:
    with pytest.raises(kind, match=named):
        complete(PROMPT, model=demo_fp32, **options)


def test_no_prompts_are_refused(demo_fp32: Model) -> None:
    with pytest.raises(ValueError, match="prompts is empty"):
        complete([], model=demo_fp32)


@pytest.mark.parametrize("wrong", [None, 5, b"Once"], ids=repr)
def test_what_is_no_prompt_is_refused(demo_fp32: Model, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"prompts is .*; a text \(str\) or a list of token ids"):
        complete(wrong, model=demo_fp32)


def test_a_plain_export_does_one_row_at_a_time(demo_reference: Model, demo_fp32: Model) -> None:
    with pytest.raises(ValueError, match="plain ONNX export"):
        complete(["The", PROMPT], model=demo_reference)
    options: dict[str, Any] = {"max_new_tokens": 8, "batch_size": 1}
    found = complete(["The", PROMPT], model=demo_reference, **options)
    assert ids_of(found) == ids_of(complete(["The", PROMPT], model=demo_fp32, **options))


def test_a_result_is_short_in_a_repl(demo_fp32: Model) -> None:
    [long] = complete("The old king", model=demo_fp32, max_new_tokens=100, temperature=1.0, seed=3)
    assert repr(long) == f"<Completion {long.text[:60] + '...'!r}: 100 tokens, ended by length, {facts(long)}>"
    [short] = complete("One day", model=demo_fp32, max_new_tokens=2)
    assert repr(short) == f"<Completion {short.text!r}: 2 tokens, ended by length, logprob {short.logprob:.2f}>"
    scored = score_text("Once upon a time", model=demo_fp32)
    figures = f"logprob {scored.logprob:.2f}, perplexity {scored.perplexity:.2f}"
    assert repr(scored) == f"<Score: {len(scored.ids)} tokens, {figures}>"


def facts(completion: Completion) -> str:
    return f"logprob {completion.logprob:.2f}, seed {completion.seed}"


# rows that cannot go on ----------------------------------------------------------------------------------------------


def only(model: Model, text: str, **options: Any) -> dict[str, Any]:
    """Options that leave one id to generate."""
    (own,) = encode(model, text)
    bias = {id_: -math.inf for id_ in range(model.config.vocab_size) if id_ != own}
    return {"model": model, "logit_bias": bias, **options}


def test_a_row_without_a_choice_ends_alone(demo_fp32: Model) -> None:
    options = only(demo_fp32, " the", no_repeat_ngram_size=1, max_new_tokens=1)
    first, second, third = complete(["Once", "Once upon the", "Twice"], **options)
    for one in (first, third):
        assert (one.text, one.finish_reason, len(one.logprobs)) == (" the", "length", 1)
    assert (second.text, second.ids, second.finish_reason, second.logprobs) == ("", [], "no_token", [])


def test_a_row_without_a_choice_keeps_what_it_wrote(demo_fp32: Model) -> None:
    options = only(demo_fp32, " the", no_repeat_ngram_size=2, max_new_tokens=9)
    for one in complete(["Once", "Twice"], batch_size=1, **options):
        assert (one.text, one.finish_reason, len(one.logprobs)) == (" the the", "no_token", 2)


def test_where_pieces_are_all_that_is_seen_it_is_an_error_at_their_end(demo_fp32: Model) -> None:
    options = only(demo_fp32, " the", no_repeat_ngram_size=2, max_new_tokens=9)
    pieces = []
    with pytest.raises(ValueError, match="leave no token to generate after 2 new tokens of prompt 0"):
        pieces.extend(stream("Once", **options))
    assert "".join(pieces) == " the the"
    with pytest.raises(ValueError, match="leave no token"):
        generate("Once", **options)
    several: list[tuple[int, str]] = []
    with pytest.raises(ValueError, match="after 2 new tokens of prompt 0"):
        several.extend(stream_many(["Once", "Twice"], **options))
    assert ["".join(piece for index, piece in several if index == at) for at in range(2)] == [" the the"] * 2
