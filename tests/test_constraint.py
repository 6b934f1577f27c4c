"""Continuations of a given form, beside brute force over the vocabulary."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime import cli, complete, generate, stream
from runtime.constraint import Constraint
from runtime.model import Model
from runtime.options import Options
from runtime.sampling import softmax, uniform

if os.environ.get("CI") != "true":  # there the extra is installed
    pytest.importorskip("llguidance", reason="needs the extra `constrain`")

calm = settings(deadline=None, max_examples=25)  # time is not what these test
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ENDLESS = {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"], "additionalProperties": False}


@pytest.fixture(scope="module")
def tokens(demo_fp32: Model) -> list[bytes]:
    """The bytes of every token, as the tokenizer's own decoder gives them where they are text."""
    from runtime.grammar import vocabulary

    return vocabulary(demo_fp32).tokens


def constrain(model: Model, n_max: int = 40, **options: Any) -> Constraint:
    made = Options(**options)
    assert made.form is not None
    return Constraint(model, made, made.form, n_max)


def allowed(constraint: Constraint, n_vocab: int) -> set[int]:
    return set(np.flatnonzero(constraint.restrict(np.zeros(n_vocab, np.float32)) == 0).tolist())


def take(constraint: Constraint, id_: int, n_vocab: int) -> None:
    logits = np.full(n_vocab, -np.inf, np.float32)
    logits[id_] = 0
    assert constraint.choose(logits, 0, lambda scores, _step: int(scores.argmax())) == id_


# which tokens may come next ----------------------------------------------------------------------------------------

CHOICES = [" yes", " no", " yesterday", " ¿qué?", " ñandú é", "😀😀", " a.*[b]|(c)^$\\d/#&~-", "line\nline\t{2}", " no"]


def follows(text: bytes, tokens: list[bytes], choices: list[bytes]) -> set[int]:
    """By brute force: a token may come next if text and token begin a choice."""
    return {id_ for id_, token in enumerate(tokens) if token and any(c.startswith(text + token) for c in choices)}


def test_tokens_are_the_tokenizers(demo_fp32: Model, tokens: list[bytes]) -> None:
    for id_, token in enumerate(tokens):
        assert token.decode("utf-8", "replace") == demo_fp32.tokenizer.decode([id_])  # special ones are skipped by both


@pytest.mark.parametrize("seed", range(12))
def test_what_may_come_next_is_what_begins_a_choice(demo_fp32: Model, tokens: list[bytes], seed: int) -> None:
    n_vocab, choices = demo_fp32.config.vocab_size, [choice.encode() for choice in CHOICES]
    constraint, text, random = constrain(demo_fp32, choices=CHOICES), b"", np.random.default_rng(seed)
    while not constraint.is_complete:
        expected = follows(text, tokens, choices)
        ends = demo_fp32.config.eos_token_ids if text in choices else set()
        assert allowed(constraint, n_vocab) == expected | ends
        id_ = int(random.choice(sorted(expected)))
        take(constraint, id_, n_vocab)
        text += tokens[id_]
    assert text in choices


def test_the_end_is_allowed_exactly_where_the_form_may_end(demo_fp32: Model) -> None:
    n_vocab, eos = demo_fp32.config.vocab_size, demo_fp32.config.eos_token_ids
    constraint = constrain(demo_fp32, regex="(ab)*")
    a, b = (demo_fp32.tokenizer.token_to_id(letter) for letter in "ab")
    assert eos <= allowed(constraint, n_vocab)
    take(constraint, a, n_vocab)
    assert not eos & allowed(constraint, n_vocab)
    take(constraint, b, n_vocab)
    assert eos <= allowed(constraint, n_vocab)


def test_special_tokens_written_in_a_form_are_text(demo_fp32: Model) -> None:
    choice = " <|endoftext|>"
    assert generate("Once", model=demo_fp32, choices=[choice]) == choice


# probabilities -----------------------------------------------------------------------------------------------------


def paths(text: bytes, choices: list[bytes], tokens: list[bytes]) -> list[list[int]]:
    """Every sequence of ids whose bytes are a choice."""
    found = [[]] if text in choices else []
    for id_ in follows(text, tokens, choices):
        found += [[id_, *rest] for rest in paths(text + tokens[id_], choices, tokens)]
    return found


def test_choices_are_as_likely_as_their_renormalized_tokens(demo_fp32: Model, tokens: list[bytes]) -> None:
    """No choice begins another, so that a path is the product of its tokens' shares alone."""
    choices, n = [" yes", " no", " it"], 600
    drawn = complete("He said", model=demo_fp32, choices=choices, temperature=1.0, n=n, seed=5, logprobs=0)
    observed = {choice: sum(c.text == choice for c in drawn) for choice in choices}
    ids = demo_fp32.tokenizer.encode("He said", add_special_tokens=False).ids
    encoded = [choice.encode() for choice in choices]
    expected = dict.fromkeys(choices, 0.0)
    for path in paths(b"", encoded, tokens):
        share, text = 1.0, b""
        for n_taken, id_ in enumerate(path):
            logits = logits_after(demo_fp32, [*ids, *path[:n_taken]])
            likely = sorted(follows(text, tokens, encoded))
            share *= float(softmax(logits[likely].astype(np.float64))[likely.index(id_)])
            text += tokens[id_]
        expected[text.decode()] += share
    assert math.isclose(sum(expected.values()), 1, abs_tol=1e-9)
    chi_square = sum((observed[c] - n * expected[c]) ** 2 / (n * expected[c]) for c in choices)
    assert chi_square < 13.8  # 2 degrees of freedom: once in a thousand seeds


def logits_after(model: Model, ids: list[int]) -> NDArray[np.float32]:
    cache = model.new_cache(len(ids))
    last: NDArray[np.float32] = cache.extend(ids)[-1]
    return last.copy()


def test_a_token_that_leaves_no_time_is_drawn_again_in_proportion(demo_fp32: Model) -> None:
    """One token remains: of a, b and c only what completes the form in time keeps its probability."""
    n_vocab = demo_fp32.config.vocab_size
    a, b, c = (demo_fp32.tokenizer.token_to_id(letter) for letter in "abc")
    logits = np.full(n_vocab, -30, np.float32)
    logits[[a, b, c]] = np.log([0.5, 0.3, 0.2])

    def sample(scores: NDArray[np.float32], step: int) -> int:
        shares = softmax(scores.astype(np.float64))
        return int(np.searchsorted(np.cumsum(shares), uniform(1, step)))

    drawn = []
    for step in range(1000):
        constraint = constrain(demo_fp32, n_max=1, regex="aq7q7q7|b|c")
        drawn.append(constraint.choose(constraint.restrict(logits), step, sample))
    assert set(drawn) == {b, c}
    assert abs(drawn.count(b) / 1000 - 0.6) < 0.05


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
        generate("Once", model=demo_fp32, json_schema=PERSON, temperature=temperature, seed=3, max_new_tokens=n)
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
    text = generate("", model=demo_fp32, json_schema=schema, temperature=temperature, seed=1, max_new_tokens=n)
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
    from runtime import grammar

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


# with other options ------------------------------------------------------------------------------------------------


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
        ({"choices": "yes"}, TypeError, "list of strings"),
        ({"choices": ["a", 3]}, TypeError, "list of strings"),
        ({"choices": ["\udc80"]}, ValueError, "surrogate"),
        ({"regex": 3}, TypeError, "string"),
        ({"regex": re.compile("a")}, TypeError, "pattern"),
        ({"regex": "a\\"}, ValueError, "backslash"),
        ({"json_schema": "{"}, ValueError, "no JSON"),
        ({"json_schema": [1]}, TypeError, "object"),
        ({"json_schema": {"const": math.nan}}, ValueError, "no JSON"),
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
    from runtime import grammar

    monkeypatch.setattr(grammar, "_VOCABULARIES", {})
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"gpt2-edge\[constrain\]"):
        generate("Once", model=demo_fp32, choices=["a"])


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
