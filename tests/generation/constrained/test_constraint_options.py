"""A form beside other options: what goes with it, what does not, and what is no form at all."""

from __future__ import annotations

import math
import os
import re
import sys
from typing import Any

import pytest

from runtime import complete, generate, stream
from runtime.model.model import Model
from runtime.options import Options

if os.environ.get("CI") != "true":  # there the extra is installed
    pytest.importorskip("llguidance", reason="needs the extra `constrain`")

ENDLESS = {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"], "additionalProperties": False}


def test_suppressed_ids_are_gone_around(demo_fp32: Model) -> None:
    whole = demo_fp32.tokenizer.token_to_id("Ġking")
    (c,) = complete("Once", model=demo_fp32, choices=[" king"], suppress_ids=[whole])
    assert c.text == " king"
    assert whole not in c.ids


def test_a_window_that_slides_keeps_the_form(demo_fp32: Model) -> None:
    text = generate("Once " * 250, model=demo_fp32, regex="[a-z ]{20}", overflow="slide", max_new_tokens=20)
    assert re.fullmatch("[a-z ]{20}", text)


@pytest.mark.parametrize("form", [{"choices": ["a"]}, {"regex": "a"}, {"json_schema": {}}], ids=repr)
@pytest.mark.parametrize(
    "other", [{"stop": "x"}, {"min_new_tokens": 2}, {"no_repeat_ngram_size": 2}, {"token_healing": True}], ids=repr
)
def test_what_would_break_a_form_is_refused_by_name(form: dict[str, Any], other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not go with") as error:
        Options(**form, **other)
    assert all(name in str(error.value) for name in (*form, *other))


def test_two_forms_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="choices and regex"):
        Options(choices=["a"], regex="a")


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"choices": []}, ValueError, "empty"),
        ({"choices": "yes"}, TypeError, "several texts"),
        ({"choices": ["a", 3]}, TypeError, "a text"),
        ({"choices": ["\udc80"]}, ValueError, "surrogate"),
        ({"regex": 3}, TypeError, "a text"),
        ({"regex": re.compile("a")}, TypeError, "pattern"),
        ({"regex": "a\\"}, ValueError, "backslash"),
        ({"json_schema": "{"}, ValueError, "not JSON"),
        ({"json_schema": [1]}, TypeError, "object"),
        ({"json_schema": {"const": math.nan}}, ValueError, "as JSON"),
    ],
    ids=repr,
)
def test_what_is_no_form_is_refused(wrong: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as error:
        Options(**wrong)
    assert next(iter(wrong)) in str(error.value)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": "["}, "unclosed"),
        ({"regex": "a[b&&c]"}, "contradicts itself"),
        ({"regex": "a{1000}"}, "within 10 tokens"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable"),
        ({"json_schema": {"type": "array", "contains": {}}}, "contains"),
        ({"json_schema": ENDLESS}, "within 10 tokens"),
    ],
    ids=repr,
)
def test_a_form_that_cannot_be_is_a_value_error(demo_fp32: Model, form: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        stream("Once", model=demo_fp32, max_new_tokens=10, **form)
    assert next(iter(form)) in str(error.value)


def test_without_the_extra_the_error_names_it(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.generation.constrained import grammar

    monkeypatch.setattr(grammar, "_VOCABULARIES", {})
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"gpt2-edge\[constrain\]"):
        generate("Once", model=demo_fp32, choices=["a"])
