"""What values an option may have: the same on the command line and in JSON as in Python."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Annotated, Any

import pytest

from runtime._kinds import (
    Callback,
    Choice,
    Flag,
    Function,
    Integer,
    JsonSchema,
    Kind,
    LogitBias,
    Number,
    Text,
    unescape,
)
from runtime.options import OPTIONS, Option, Options

ON_COMMAND_LINE = {name: option for name, option in OPTIONS.items() if not isinstance(option.kind, Function)}
# of each option: arguments, the same value in JSON, and in Python
SAME: dict[str, tuple[list[str], Any, Any]] = {
    "max_new_tokens": (["7"], 7, 7),
    "temperature": (["0.5"], 0.5, 0.5),
    "overflow": (["slide"], "slide", "slide"),
    "special_tokens": ([], True, True),
    "logit_bias": (["5=1.5", "6=-2"], {"5": 1.5, "6": -2}, {5: 1.5, 6: -2.0}),
    "suppress_ids": (["5", "6"], [5, 6], (5, 6)),
    "stop": ([r"a\n", "b"], ["a\n", "b"], ("a\n", "b")),
    "choices": (["a", "b"], ["a", "b"], ("a", "b")),
    "regex": (["a+"], "a+", "a+"),
    "json_schema": (['{"type": "object"}'], {"type": "object"}, '{"type": "object"}'),
    "seed": ([str(2**64 - 1)], 2**64 - 1, 2**64 - 1),
}


def parse(kind: Kind[Any], arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", **kind.command_line())
    given = [part for one in arguments for part in ("--it", one)] if arguments else ["--it"]
    return kind.collect(parser.parse_args(given).it)


def test_every_kind_of_option_is_tried() -> None:
    kinds = {type(OPTIONS[name].kind) for name in SAME}
    assert kinds == {type(option.kind) for option in ON_COMMAND_LINE.values()}


@pytest.mark.parametrize("name", SAME)
def test_a_value_means_the_same_everywhere(name: str) -> None:
    pydantic = pytest.importorskip("pydantic")
    arguments, in_json, plain = SAME[name]
    option = OPTIONS[name]
    assert option.read(name, parse(option.kind, arguments)) == plain
    form = option.kind.json_form()
    read = pydantic.TypeAdapter(Annotated[form.type, pydantic.Field(**form.limits)]).validate_python(in_json)
    if name == "logit_bias":
        read = {int(id_): number for id_, number in read.items()}
    assert option.read(name, read) == plain


@pytest.mark.parametrize("name", [name for name, option in ON_COMMAND_LINE.items() if option.kind.json_form().limits])
def test_the_limits_in_json_are_those_of_python(name: str) -> None:
    option = OPTIONS[name]
    step = 1 if isinstance(option.kind, Integer) else 1e-6
    for limit, number in option.kind.json_form().limits.items():
        inside, outside = {
            "ge": (number, number - step),
            "gt": (number + step, number),
            "le": (number, number + step),
        }[limit]
        assert option.read(name, inside) == inside
        with pytest.raises(ValueError, match=name):
            option.read(name, outside)


def test_every_default_is_a_value_of_its_kind() -> None:
    for name, option in OPTIONS.items():
        assert option.read(name, option.default) == option.default
    assert Options() == Options(**{name: option.default for name, option in OPTIONS.items()})


@pytest.mark.parametrize(
    ("given", "read"),
    [(r"\n\t\r\\", "\n\t\r\\"), (r"\d\\n", r"\d\n"), ("\\", "\\"), ("plain", "plain"), ("\n", "\n")],
)
def test_escapes_of_the_command_line(given: str, read: str) -> None:
    assert unescape(given) == read


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        (LogitBias(), "5", "'5' is not ID=NUMBER"),
        (LogitBias(), "a=1", "'a=1' is not ID=NUMBER"),
        (JsonSchema(), "no-such-file", "neither a JSON schema nor a file"),
        (Integer(0), "1.5", "invalid int value"),
        (Choice(("a", "b")), "c", "invalid choice"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_said(kind: Kind[Any], wrong: str, told: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=told):
        parse(kind, [wrong])


def test_a_schema_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "array"}', encoding="utf-8")
    assert JsonSchema().read("json_schema", parse(JsonSchema(), [str(path)])) == '{"type": "array"}'


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        ([1, 2], TypeError, "a mapping from token ids to numbers"),
        ({"a": 1.0}, TypeError, "the key 'a'; a token id"),
        ({True: 1.0}, TypeError, "the key True; a token id"),
        ({1: "a"}, TypeError, "'a' for token id 1; a number"),
        ({1: True}, TypeError, "True for token id 1; a number"),
        ({1: math.nan}, ValueError, "nan for token id 1"),
        ({1: 10**400}, ValueError, "beyond every float for token id 1"),
    ],
)
def test_what_is_no_bias_is_refused(wrong: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        LogitBias().read("logit_bias", wrong)


@pytest.mark.parametrize(
    ("kind", "value"), [(Text(), 3), (Flag(), 1), (Number(), "1"), (Integer(0), 1.0), (Callback(), 3)], ids=repr
)
def test_a_wrong_type_is_a_type_error_with_the_name(kind: Kind[Any], value: object) -> None:
    with pytest.raises(TypeError, match=f"colour is {value!r}; .* expected"):
        Option(kind, None, "").read("colour", value)
