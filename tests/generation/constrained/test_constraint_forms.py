"""Continuations of a given form: every result has it, however it is decoded."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime import complete, generate, stream
from runtime.cli import parser as cli
from runtime.model.model import Model

if os.environ.get("CI") != "true":  # there the extra is installed
    pytest.importorskip("llguidance", reason="needs the extra `constrain`")

calm = settings(deadline=None, max_examples=25)  # time is not what these test
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


# the result has the form -------------------------------------------------------------------------------------------

LITERAL = st.text("ab1é ", min_size=1, max_size=3).map(re.escape)
REGEX = st.recursive(
    LITERAL | st.sampled_from(["[a-c]", "[0-9]", ".", "[^a]", "x?"]),
    lambda part: (
        st.lists(part, min_size=1, max_size=3).map("".join)
        | st.lists(part, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})")
        | st.tuples(part, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}"])).map("(?:{0[0]}){0[1]}".format)
    ),
    max_leaves=6,
)


@calm
@given(regex=REGEX, seed=st.integers(0, 99), n=st.integers(1, 60))
def test_a_continuation_matches_the_regex(demo_fp32: Model, regex: str, seed: int, n: int) -> None:
    try:
        text = generate("Once", model=demo_fp32, regex=regex, temperature=2.0, seed=seed, max_new_tokens=n)
    except ValueError as error:
        assert f"within {n} tokens" in str(error)
        assume(False)
    assert re.fullmatch(regex, text)


@calm
@given(choices=st.lists(st.text(max_size=6), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_continuation_is_one_of_the_choices(demo_fp32: Model, choices: list[str], seed: int) -> None:
    got = complete("Once", model=demo_fp32, choices=choices, temperature=3.0, seed=seed, n=3)
    assert {c.text for c in got} <= set(choices)
    assert {c.finish_reason for c in got} <= {"eos", "length"}


@pytest.mark.parametrize("n", [20, 24, 40, 100])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_json_is_complete_however_little_time_there_is(demo_fp32: Model, n: int, temperature: float) -> None:
    person = json.loads(
        generate(
            "Once",
            model=demo_fp32,
            json_schema=PERSON,
            temperature=temperature,
            seed=3 if temperature else None,
            max_new_tokens=n,
        )
    )
    assert person.keys() == {"name", "age"}
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)
    assert 0 <= person["age"] <= 150


def test_json_of_several_objects_is_complete(demo_fp32: Model) -> None:
    schema = {"type": "array", "items": PERSON, "minItems": 3}
    for c in complete("Once", model=demo_fp32, json_schema=schema, temperature=1.5, n=3, seed=1, max_new_tokens=150):
        people = json.loads(c.text)
        assert len(people) >= 3
        assert all(person.keys() == {"name", "age"} for person in people)
        assert c.text == json.dumps(people, ensure_ascii=False) or "\\" in c.text


OPEN = {name: value for name, value in PERSON.items() if name != "additionalProperties"}  # as pydantic writes it
TEAM = {
    "type": "object",
    "properties": {"people": {"type": "array", "items": OPEN, "minItems": 3}, "title": {"type": "string"}},
    "required": ["people", "title"],
}
RECORD = {
    "type": "object",
    "properties": {f"key_number_{n}": {"type": "string", "minLength": 5} for n in range(12)},
    "required": [f"key_number_{n}" for n in range(12)],
}


@pytest.mark.parametrize(
    ("schema", "n"), [({"type": "array", "items": OPEN, "minItems": 3}, 70), (TEAM, 100), (RECORD, 300)]
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_schemas_as_programs_write_them(demo_fp32: Model, schema: dict[str, Any], n: int, temperature: float) -> None:
    text = generate(
        "",
        model=demo_fp32,
        json_schema=schema,
        temperature=temperature,
        seed=1 if temperature else None,
        max_new_tokens=n,
    )
    jsonschema_rs.validate(schema, json.loads(text))


@pytest.mark.parametrize("regex", ["[ab]*a[ab]{12}", "(?s).*a.{20}", "(?:[A-Z]{3}[0-9]{2}){9}x", "[Ͱ-Ͽ一-鿿]{30}"])
@pytest.mark.parametrize("seed", [0, 1])
def test_forms_whose_state_the_next_tokens_do_not_show(demo_fp32: Model, regex: str, seed: int) -> None:
    text = generate("Once", model=demo_fp32, regex=regex, temperature=1.5, seed=seed, max_new_tokens=100)
    assert re.fullmatch(regex, text)


def test_a_schema_may_be_given_as_json(demo_fp32: Model) -> None:
    as_dict = generate("Once", model=demo_fp32, json_schema=PERSON)
    assert generate("Once", model=demo_fp32, json_schema=json.dumps(PERSON)) == as_dict


def test_counted_repeats_are_completed(demo_fp32: Model) -> None:
    text = generate("Once", model=demo_fp32, regex="[a-z ]{100}[.]", temperature=1.5, seed=1, max_new_tokens=60)
    assert re.fullmatch("[a-z ]{100}[.]", text)


def test_every_way_of_decoding_gives_the_same(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"regex": "[A-Z][a-z ]{10,}[.]", "temperature": 1.0, "max_new_tokens": 30}
    alone = [generate(p, model=demo_fp32, seed=2, **options) for p in ("Once", "The old king", "I")]
    assert ["".join(stream(p, model=demo_fp32, seed=2, **options)) for p in ("Once", "The old king", "I")] == alone
    batch = complete(["Once", "The old king", "I"], model=demo_fp32, seed=2, n=2, **options)
    assert [c.text for c in batch if c.sample_index == 0] == alone
    assert all(re.fullmatch(options["regex"], c.text) for c in batch)


def test_a_row_depends_on_no_other(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on what the searches of other rows have found, nor on how long those took."""
    from runtime.generation.constrained import grammar

    options: dict[str, Any] = {"regex": "(?:[a-z]{3}[0-9]{2}){12}x", "temperature": 1.0, "max_new_tokens": 62}
    together = [generate("Once", model=demo_fp32, seed=seed, **options) for seed in range(4)]
    for seed, text in enumerate(together):
        monkeypatch.setattr(grammar, "_VOCABULARIES", {})
        assert generate("Once", model=demo_fp32, seed=seed, **options) == text


@pytest.mark.parametrize("choice", ["", " a"])
def test_one_choice_is_the_text(demo_fp32: Model, choice: str) -> None:
    assert generate("Once", model=demo_fp32, choices=[choice]) == choice


def test_a_form_that_is_complete_takes_no_token_more(demo_fp32: Model) -> None:
    eos = sorted(demo_fp32.config.eos_token_ids)
    (c,) = complete("Once", model=demo_fp32, choices=["a"], max_new_tokens=1, suppress_ids=eos)
    assert (c.text, c.n_tokens, c.finish_reason) == ("a", 1, "eos")


# the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_file", [False, True])
def test_forms_on_the_command_line(
    demo_fp32_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, as_file: bool
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(PERSON), encoding="utf-8")
    given = str(schema) if as_file else json.dumps(PERSON)
    command = ["generate", "Once", "--model", str(demo_fp32_folder)]
    assert cli.main([*command, "--json-schema", given]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"name", "age"}
    assert cli.main([*command, "--choices", " yes", "--choices", " ñ"]) == 0
    assert capsys.readouterr().out in (" yes\n", " ñ\n")
    assert cli.main([*command, "--regex", "[a-z]{3}"]) == 0
    assert re.fullmatch("[a-z]{3}\n", capsys.readouterr().out)


def test_a_schema_file_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["generate", "Once", "--json-schema", "nowhere.json"])
    assert exit_.value.code == 2
    assert "nowhere.json" in capsys.readouterr().err
