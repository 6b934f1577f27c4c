"""The options in the signatures and docstrings of the public functions are those of `runtime.options`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.option_names import PARAMETERS
from runtime.options import OPTIONS, TASK_DEFAULT, Options
from tests.support import signatures

FUNCTIONS = [getattr(runtime, name) for name in signatures.FUNCTIONS]
TYPES = {field.name: field.type for field in dataclasses.fields(Options)}


def squeezed(text: str | None) -> str:
    return " ".join((text or "").split())


def test_nothing_is_left_to_write() -> None:
    """`python -m tests.support.signatures` was run after the last change of `runtime.options`."""
    assert signatures.API.read_text(encoding="utf-8") == signatures.rewrite_api(signatures.API.read_text("utf-8"))
    assert signatures.PAGE.read_text(encoding="utf-8") == signatures.rewrite_page(signatures.PAGE.read_text("utf-8"))


def test_what_is_out_of_date_is_written() -> None:
    source = signatures.API.read_text(encoding="utf-8")
    old = re.sub(r"^    top_k: .*\n", "", source, flags=re.MULTILINE).replace("sample from the k likeliest", "choose")
    assert old.count("top_k: int") == 0
    assert signatures.rewrite_api(old) == source
    page = signatures.PAGE.read_text(encoding="utf-8")
    old = re.sub(r"^\| `(stop|draft)`.*\n", "", page, flags=re.MULTILINE)
    assert old.count("\n") == page.count("\n") - 2
    assert signatures.rewrite_page(old) == page


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_option_is_a_parameter_with_its_default_and_type(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert list(OPTIONS) == [name for name in parameters if name in OPTIONS]
    for name, option in OPTIONS.items():
        parameter = parameters[name]
        assert parameter.kind is parameter.KEYWORD_ONLY
        if function is runtime.perform:
            assert parameter.default is TASK_DEFAULT
            assert parameter.annotation == signatures.or_task_default(str(TYPES[name]))
        else:
            default = signatures.default_of(function.__name__, name)
            assert (parameter.default, type(parameter.default)) == (default, type(option.default))
            own = ("int | Sequence[int] | None",) if (function, name) == (runtime.complete, "seed") else ()
            assert parameter.annotation in (TYPES[name], *own)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_help_describes_every_parameter(function: Any) -> None:
    text = squeezed(inspect.getdoc(function))
    for name in inspect.signature(function).parameters:
        assert re.search(rf"(^| |\*){name}: ", text), name
    for name, option in OPTIONS.items():
        if (function, name) != (runtime.complete, "seed"):
            assert f" {name}: {squeezed(option.about)}." in text


def test_other_names_are_in_the_description() -> None:
    text = squeezed(inspect.getdoc(runtime.generate))
    for names in (
        "stop: stop_strings",
        "suppress_ids: suppress_tokens",
        "lookup: prompt_lookup_num_tokens",
        "draft: assistant_model",
        "deadline: max_time",
    ):
        own, other = names.split(": ")
        begin = text.index(f" {own}: ")
        assert f"(transformers: {other}" in text[begin : text.index(")", text.index("(transformers", begin)) + 1]
    assert "(transformers: num_return_sequences)" in squeezed(inspect.getdoc(runtime.complete))


def test_the_names_of_transformers_are_its_own() -> None:
    from transformers import GenerationConfig

    ours = {name for name, option in OPTIONS.items() if option.transformers == name}
    ours |= {one.name for one in PARAMETERS if one.transformers == one.name} - {"batch_size"}
    ours -= {"logits_processor"}
    assert {"max_new_tokens", "temperature", "token_healing", "num_beams"} <= ours
    assert ours <= set(GenerationConfig().to_dict())
    not_of_generate = {
        "stopping_criteria",
        "assistant_model",
        "past_key_values",
        "logits_processor",
    }  # arguments of `generate`
    not_of_generate |= {"set_seed", "truncation", "split_special_tokens", "batch_size", "torch.set_num_threads"}
    theirs = {one.transformers for one in (*OPTIONS.values(), *PARAMETERS) if one.transformers}
    assert theirs - not_of_generate <= set(GenerationConfig().to_dict())


def test_parameters_are_of_the_functions_that_are_named() -> None:
    for parameter in PARAMETERS:
        for name in parameter.functions:
            assert parameter.name in inspect.signature(getattr(runtime, name)).parameters


def test_descriptions_are_phrases() -> None:
    """The writer of docstrings adds the full stop, and argparse what it adds."""
    for name, option in OPTIONS.items():
        assert not option.about.endswith("."), name
        assert not option.about[0].isupper(), name
        assert len(option.about) < 300, name


# what type checkers see --------------------------------------------------------------------------------------------

GOOD = """
import numpy as np
import runtime
from collections.abc import Iterator
from runtime import Completion, Score

model = runtime.load("folder", threads=2)
text: str = runtime.generate("Once", model=model, max_new_tokens=3, stop=["a"], logit_bias={3: 1.0}, overflow="slide")
pieces: Iterator[str] = runtime.stream("Once", temperature=1, seed=None, cancel=lambda: False)
louder: str = runtime.generate("Once", logits_processor=lambda ids, logits: 2 * logits, banned="zz", dry_multiplier=0.8)
many: Iterator[tuple[int, str]] = runtime.stream_many(["Once"], batch_size=2, regex="a+")
completions: list[Completion] = runtime.complete("Once", n=2, seed=[1, 2], temperature=0.5, json_schema="{}")
answer: str = runtime.perform("translate", "Hello", to="French", max_new_tokens=3).text
score: Score = runtime.score("Once")
scores: list[Score] = runtime.score(["Once", "Twice"], context="And")
try:
    runtime.generate("Once" * 9999)
except runtime.ContextLengthError as error:
    room: int = error.n_positions - error.n_prompt
"""
BAD = """
import runtime

runtime.generate("Once", max_new_tokens="3")  # arg-type
runtime.generate("Once", max_tokens=3)  # call-arg
runtime.generate("Once", overflow="wrap")  # arg-type
runtime.generate("Once", task="summarize")  # call-arg
runtime.generate(3)  # arg-type
runtime.stream("Once", temperature=None)  # arg-type
runtime.stream("Once", n=2)  # call-arg
runtime.stream_many(["Once"], stop=3)  # arg-type
runtime.complete("Once", seed=["1"])  # list-item
runtime.complete("Once", cancel=True)  # arg-type
runtime.complete("Once", logits_processor=3)  # arg-type
runtime.perform("translate", "Hello", max_new_tokens="3")  # arg-type
reveal_type(runtime.generate)  # misc
"""


def test_a_type_checker_knows_every_option(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "bad.py").write_text(BAD, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--show-error-codes", "good.py", "bad.py"]
    settings = ["--config-file", str(signatures.REPOSITORY / "pyproject.toml")]
    settings += ["--cache-dir", str(signatures.REPOSITORY / ".mypy_cache")]
    done = subprocess.run(
        [*command, *settings],
        cwd=tmp_path,
        env={"MYPYPATH": str(signatures.REPOSITORY), "PATH": ""},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    errors = dict(re.findall(r"^bad\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE))
    expected = {
        str(number): line.rpartition("# ")[2] for number, line in enumerate(BAD.splitlines(), 1) if "# " in line
    }
    revealed = re.search(r"Revealed type is \"(.*)\"", done.stdout)
    assert "good.py" not in done.stdout, done.stdout + done.stderr
    assert errors == {number: code for number, code in expected.items() if code != "misc"}, done.stdout + done.stderr
    assert revealed is not None
    # a parameter with a default is shown as `name: type =`
    assert all(re.search(rf"\b{name}: [^=]+ =", revealed[1]) for name in OPTIONS)


def test_the_page_works_as_written(demo_int8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = signatures.PAGE.read_text(encoding="utf-8")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo").symlink_to(signatures.REPOSITORY / "models" / "demo", target_is_directory=True)
    (tmp_path / "models" / "demo-int8").symlink_to(demo_int8_folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    theirs, ours = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found: dict[str, dict[str, Any]] = {"theirs": {}, "ours": {}}
    exec(theirs, found["theirs"])
    exec(ours, found["ours"])
    found["ours"]["model"].close()
    assert isinstance(found["theirs"]["text"], str)
    assert isinstance(found["ours"]["text"], str)
    [call, error] = re.findall(r"^```pycon\n>>> (.*)\nTypeError: (.*)\n```", page, re.MULTILINE)[0]
    with pytest.raises(TypeError) as raised:
        eval(call, {"runtime": runtime})
    assert str(raised.value).startswith(error.removesuffix("..."))
