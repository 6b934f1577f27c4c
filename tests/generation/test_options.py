"""What each option of a generation may be, and what is said where it may not."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from runtime import complete, generate, perform, stream, stream_many
from runtime.model.model import Model
from runtime.options import OPTIONS, Options

WHOLE = ["max_new_tokens", "min_new_tokens", "top_k", "no_repeat_ngram_size", "lookup", "seed", "pinned_tokens"]
NUMBERS = ["temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("wrong", [1.0, "3", True, [3], 2j, math.nan, np.float32(2)], ids=repr)
def test_a_whole_number_is_expected(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name}.*whole number"):
        Options(**{name: wrong})


@pytest.mark.parametrize("name", [*NUMBERS, "deadline"])
@pytest.mark.parametrize("wrong", ["0.5", True, [0.5], 1j, b"1"], ids=repr)
def test_a_number_is_expected(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name}.*number"):
        Options(**{name: wrong})


@pytest.mark.parametrize("name", sorted({*WHOLE, *NUMBERS} - {"seed"}))
def test_none_is_no_number(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        Options(**{name: None})


@pytest.mark.parametrize("name", [*NUMBERS, "deadline"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 10**400], ids=["nan", "inf", "-inf", "10**400"])
def test_numbers_are_finite(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=name):
        Options(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "allowed"),
    [
        ("max_new_tokens", 0, "at least 1"),
        ("max_new_tokens", -5, "at least 1"),
        ("top_k", -1, "at least 0"),
        ("no_repeat_ngram_size", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("seed", 2**64, str(2**64 - 1)),
        ("temperature", -0.1, "at least 0"),
        ("top_p", 0.0, "above 0"),
        ("top_p", -0.5, "above 0"),
        ("top_p", 1.0001, "at most 1"),
        ("min_p", -0.1, "at least 0"),
        ("min_p", 1.1, "at most 1"),
        ("typical_p", 0, "above 0"),
        ("typical_p", 2, "at most 1"),
        ("repetition_penalty", 0, "above 0"),
        ("repetition_penalty", -1.0, "above 0"),
        ("deadline", 0, "above 0"),
        ("overflow", "wrap", "truncate_left"),
        ("max_new_tokens", 2**63, f"at most {2**63 - 1}"),
        ("lookup", 10**30, f"at most {2**63 - 1}"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(name: str, wrong: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{allowed}") as error:
        Options(**{"temperature": 1.0, name: wrong})
    assert str(wrong) in str(error.value)


@pytest.mark.parametrize(
    "edge",
    [
        {"max_new_tokens": 1},
        {"seed": 0},
        {"seed": 2**64 - 1},
        {"temperature": 0},
        {"temperature": 5e-324},
        {"temperature": 1, "top_p": 1},
        {"temperature": 1, "top_p": 5e-324},
        {"temperature": 1, "min_p": 1},
        {"temperature": 1, "top_k": 10**9},
        {"presence_penalty": -2.0, "frequency_penalty": -0.5},
        {"logit_bias": {3: -math.inf}},
    ],
    ids=repr,
)
def test_the_ends_of_the_ranges_are_allowed(edge: dict[str, Any]) -> None:
    Options(**edge)


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "typical_p"])
def test_what_chooses_among_samples_needs_a_temperature(name: str) -> None:
    value = {"top_k": 5}.get(name, 0.5)
    with pytest.raises(ValueError, match=rf"{name}={value}.*temperature"):
        Options(**{name: value})


def test_a_number_that_python_will_not_write_is_refused_all_the_same() -> None:
    with pytest.raises(ValueError, match=r"top_k is a number of thousands of digits; it must be at least 0"):
        Options(top_k=10**5000, temperature=1.0)


def test_a_seed_needs_a_temperature(demo_fp32: Model) -> None:
    for call in (generate, stream, complete):
        with pytest.raises(ValueError, match="seed=3 has no effect: temperature 0 does not sample"):
            call("Once", model=demo_fp32, seed=3)
    with pytest.raises(ValueError, match="seed=3 has no effect"):
        stream_many(["Once"], model=demo_fp32, seed=3)
    with pytest.raises(ValueError, match="seed=3 has no effect"):
        perform("answer", "What do bees make?", model=demo_fp32, seed=3)
    assert Options(seed=3).seed == 3  # clients of the server send one with every request


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("temprature", "(did you mean temperature?)"),
        ("max_tokens", "(here it is max_new_tokens)"),
        ("n_predict", "(here it is max_new_tokens)"),
        ("temp", "(here it is temperature)"),
        ("do_sample", "(here it is temperature)"),
        ("stop_strings", "(here it is stop)"),
        ("reverse_prompt", "(here it is stop)"),
        ("eos_token_id", "(here it is stop_ids)"),
        ("suppress_tokens", "(here it is suppress_ids)"),
        ("prompt_lookup_num_tokens", "(here it is lookup)"),
        ("max_time", "(here it is deadline)"),
        ("t_max_predict_ms", "(here it is deadline)"),
        ("context_shift", "(here it is overflow)"),
        ("num_return_sequences", "(here it is n of runtime.complete)"),
        ("assistant_model", "(here it is draft of runtime.generate, runtime.stream"),
        ("n", "here (it is a parameter of runtime.complete)"),
        ("batch_size", "here (it is a parameter of runtime.complete, runtime.stream_many and runtime.infill)"),
        ("colour", "is not an option; the options are max_new_tokens, "),
    ],
)
def test_an_unknown_option_is_told_what_it_may_have_meant(demo_fp32: Model, wrong: str, meant: str) -> None:
    with pytest.raises(TypeError) as raised:
        generate("Once", model=demo_fp32, **{wrong: 1})  # type: ignore[misc]
    assert str(raised.value).startswith(f"{wrong!r} ")
    assert meant in str(raised.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, ["min_new_tokens 9", "max_new_tokens 8"]),
        ({"pinned_tokens": 4}, ["pinned_tokens", "overflow"]),
    ],
)
def test_options_that_exclude_each_other_are_both_named(given: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        Options(**given)
    assert all(name in str(error.value) for name in named)


# texts, ids, callbacks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", ["a", ""], [""]], ids=repr)
def test_an_empty_stop_string_is_a_value_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"stop is .*not empty"):
        Options(stop=wrong)


@pytest.mark.parametrize("wrong", [None, 5, b"a", ["a", 3], [b"a"], [None]], ids=repr)
def test_what_is_no_stop_string_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"stop(\[\d\])? is .*text"):
        Options(stop=wrong)


@pytest.mark.parametrize("given", ["ab", ["ab"], ("ab",), {"ab": 1}, iter(["ab"]), (s for s in ["ab"])])
def test_stop_may_be_a_string_or_any_collection_of_them(given: Any) -> None:
    options = Options(stop=given)
    assert options.stops == ("ab",)
    assert options.stops == ("ab",)


@pytest.mark.parametrize("name", ["stop_ids", "suppress_ids"])
@pytest.mark.parametrize("wrong", ["12", [1.5], ["1"], [None], [True], 5, None], ids=repr)
def test_token_ids_are_whole_numbers(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name} is .*token ids"):
        Options(**{name: wrong})


@pytest.mark.parametrize("wrong", [[1, 2], {"a": 1.0}, {1: "a"}, {1: math.nan}, {1.5: 1.0}, {1: 10**400}, 3], ids=str)
def test_a_logit_bias_maps_ids_to_numbers(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="logit_bias"):
        Options(logit_bias=wrong)


@pytest.mark.parametrize("name", ["special_tokens", "token_healing"])
@pytest.mark.parametrize("wrong", [0, 1, "yes", None], ids=repr)
def test_a_switch_is_true_or_false(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name}.*True or False"):
        Options(**{name: wrong})


def test_cancel_is_callable() -> None:
    with pytest.raises(TypeError, match="cancel"):
        Options(cancel=True)  # type: ignore[arg-type]


# numpy's numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"max_new_tokens": np.int64(7)}, {"max_new_tokens": 7}),
        ({"max_new_tokens": np.uint8(250)}, {"max_new_tokens": 250}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": np.float64(0.7), "seed": np.uint64(2**64 - 1)}, {"temperature": 0.7, "seed": 2**64 - 1}),
        ({"temperature": Fraction(1, 2), "top_k": np.int8(3)}, {"temperature": 0.5, "top_k": 3}),
        ({"stop_ids": np.array([3, 5])}, {"stop_ids": [3, 5]}),
        ({"logit_bias": {np.int64(3): np.float32(1.5)}}, {"logit_bias": {3: 1.5}}),
    ],
    ids=repr,
)
def test_numbers_of_other_libraries_mean_what_plain_ones_do(
    demo_fp32: Model, given: dict[str, Any], plain: dict[str, Any]
) -> None:
    with np.errstate(all="raise"):
        options = {"temperature": 1.0, "seed": 1, "max_new_tokens": 5, "overflow": "stop"}
        assert generate("Once" * 100, model=demo_fp32, **options | given) == generate(
            "Once" * 100, model=demo_fp32, **options | plain
        )


def test_options_keep_plain_numbers() -> None:
    kept = Options(max_new_tokens=np.int64(7), temperature=np.float32(0.5), seed=np.int64(3))  # type: ignore[arg-type]
    assert [type(value) for value in (kept.max_new_tokens, kept.temperature, kept.seed)] == [int, float, int]


# structured output -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({}, None),
        ({"choices": ["a", "b"]}, ("choices", ("a", "b"))),
        ({"choices": (text for text in "ab")}, ("choices", ("a", "b"))),
        ({"regex": "a+"}, ("regex", "a+")),
        ({"json_schema": {"type": "object"}}, ("json_schema", '{"type": "object"}')),
        ({"json_schema": '{"type":"object"}'}, ("json_schema", '{"type": "object"}')),
    ],
    ids=repr,
)
def test_the_form_that_is_asked_for(given: dict[str, Any], form: tuple[str, Any] | None) -> None:
    assert Options(**given).form == form


@pytest.mark.parametrize("forms", [{"choices": ["a"], "regex": "a"}, {"regex": "a", "json_schema": {}}], ids=repr)
def test_a_text_has_one_form(forms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{' and '.join(forms)} are given, but a text has one form"):
        Options(**forms)


@pytest.mark.parametrize(
    "breaking",
    [{"stop": "a"}, {"min_new_tokens": 1}, {"no_repeat_ngram_size": 2}, {"token_healing": True}],
    ids=repr,
)
@pytest.mark.parametrize("form", [{"choices": ["a"]}, {"regex": "a"}, {"json_schema": {}}], ids=repr)
def test_what_could_break_a_form_is_refused(breaking: dict[str, Any], form: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(breaking))} does not go with {next(iter(form))}: it "):
        Options(**breaking, **form)


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        ({"choices": "a"}, TypeError, "choices is 'a'; several texts are expected"),
        ({"choices": ["a", 3]}, TypeError, "choices[1] is 3; a text"),
        ({"choices": []}, ValueError, "choices is empty"),
        ({"regex": 3}, TypeError, "regex is 3; a text is expected"),
        ({"regex": "a\\"}, ValueError, "escapes nothing"),
        ({"regex": "\ud800"}, ValueError, "surrogate"),
        ({"json_schema": "{"}, ValueError, "json_schema is not JSON"),
        ({"json_schema": "3"}, TypeError, "a JSON object"),
        ({"json_schema": {"default": math.nan}}, ValueError, "json_schema cannot be written as JSON"),
        ({"json_schema": {"default": {1}}}, ValueError, "json_schema cannot be written as JSON"),
    ],
    ids=repr,
)
def test_what_is_no_form_is_refused(wrong: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind) as raised:
        Options(**wrong)
    assert told in str(raised.value)


# where options are given -------------------------------------------------------------------------------------------


def test_options_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().temperature = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("n_predict", "max_new_tokens"), ("stop_strings", "stop"), ("assistant_model", "draft of runtime.generate")],
)
def test_a_task_knows_the_names_of_other_tools(demo_fp32: Model, wrong: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"'{wrong}' is no field of answer \(here it is {meant}"):
        perform("answer", "What do bees make?", model=demo_fp32, **{wrong: 1})
    with pytest.raises(TypeError, match=rf"'{wrong}' is no field of choose, "):
        perform("choose", "It is _.", model=demo_fp32, options=["a", "b"], **{wrong: 1})


def test_no_name_elsewhere_stands_for_two_options() -> None:
    """Nor is one of them a name that is taken here."""
    seen: dict[str, str] = {}
    for own, option in OPTIONS.items():
        flag = (option.llama_cpp or "").lstrip("-").replace("-", "_")
        for name in {option.transformers, flag, *option.others} - {None, "", own}:
            assert name not in OPTIONS
            assert seen.setdefault(str(name), own) == own


@pytest.mark.parametrize("function", [generate, stream])
def test_an_unknown_option_is_named(demo_fp32: Model, function: Any) -> None:
    with pytest.raises(TypeError, match="tempature"):
        function("Once", model=demo_fp32, tempature=1.0)


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize(
    ("wrong", "kind"), [({"top_p": 2}, ValueError), ({"top_k": 5}, ValueError), ({"seed": "1"}, TypeError)], ids=repr
)
def test_wrong_options_raise_at_the_call(demo_fp32: Model, function: Any, wrong: dict[str, Any], kind: Any) -> None:
    with pytest.raises(kind, match=next(iter(wrong))):
        function("Once", model=demo_fp32, **wrong)
