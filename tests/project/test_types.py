"""An application that uses the wheel, seen by mypy and pyright, both strict: every option has its name and its type."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from runtime.options import OPTIONS
from tests.support.building import REPOSITORY, run
from tests.support.environment import make_environment, required
from tests.support.signatures import FUNCTIONS
from tests.support.wheels import build_wheel, copy_clone, install

pytestmark = pytest.mark.slow
PYRIGHT = REPOSITORY / "tests" / "node" / "node_modules" / "pyright" / "index.js"
# What each expression is to a type checker: mypy's and pyright's words, without modules.
REVEALED = {
    'runtime.load("model")': "Model",
    'runtime.generate("Once")': "str",
    'runtime.generate("Once", model="model", max_new_tokens=9, temperature=0.7, stop=["."])': "str",
    'runtime.complete("Once", n=2)': "list[Completion]",
    'runtime.complete(["Once", "Then"])[0].text': "str",
    'runtime.complete("Once")[0].logprob': "float",
    'runtime.complete("Once")[0].prompt_index': "int",
    'next(iter(runtime.stream("Once")))': "str",
    'runtime.score(" a", context="Once")': "Score",
    'runtime.score_text("Once").perplexity': "float",
    'runtime.surprisal("Once")': "Surprisal",
    'runtime.prefix("Once", model="model")': "Prefix",
    "runtime.ContextLengthError().n_positions": "int",
}
WRONG = {
    "a misspelt option": 'runtime.generate("Once", temperatur=0.7)',
    "another tool's option": 'runtime.complete("Once", max_tokens=9)',
    "a misspelt option of a stream": 'runtime.stream("Once", top_K=9)',
    "a wrong type of a task's option": 'runtime.perform("summarize", "Once", max_new_tokens="nine")',
    "a wrong type": 'runtime.generate("Once", max_new_tokens="nine")',
    "a wrong choice": 'runtime.generate("Once", overflow="cut")',
    "a misspelt function": 'runtime.genrate("Once")',
    "a misspelt field": 'runtime.complete("Once")[0].txt',
    "a misspelt argument of load": 'runtime.load("model", thread=2)',
    "a prompt that is none": "runtime.generate(7)",
}


def lines(calls: Mapping[str, str]) -> str:
    """A program with a call a line, from the second on."""
    return "import runtime\n" + "".join(f"{call}\n" for call in calls.values())


def numbers(calls: Mapping[str, str]) -> dict[str, int]:
    """The line of each call in the program."""
    return {name: number for number, name in enumerate(calls, start=2)}


SHOWN = {expression: f"reveal_type({expression})" for expression in REVEALED}
SIGNATURES = {name: f"reveal_type(runtime.{name})" for name in FUNCTIONS}
MISTAKES = {name: f"print({expression})" for name, expression in WRONG.items()}
GIVEN = ", ".join(f"{name}={option.default!r}" for name, option in OPTIONS.items())
PROMPTS = {"stream_many": '["Once"]', "perform": '"summarize", "Once"', "infill": '"Once", " end"'}
CALLS = {name: f"print(runtime.{name}({PROMPTS.get(name, repr('Once'))}, {GIVEN}))" for name in FUNCTIONS}
PROGRAMS = {
    "shown.py": lines(SHOWN),
    "signatures.py": lines(SIGNATURES),
    "mistakes.py": lines(MISTAKES),
    "calls.py": lines(CALLS),
    "application.py": (REPOSITORY / "examples" / "embedded_app.py").read_text(encoding="utf-8"),
}
Reports = dict[str, dict[int, str]]
"""What a type checker says of each line of each program."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it requires."""
    place = tmp_path_factory.mktemp("types")
    found = make_environment(place / "environment", required())
    install(build_wheel(copy_clone(place / "clone"), place / "wheels"), found)
    return found


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def reports(request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Of one type checker, with its strictest rules; skips where it is missing, but in continuous integration."""
    place = tmp_path_factory.mktemp("programs")
    for name, program in PROGRAMS.items():
        (place / name).write_text(program, encoding="utf-8")
    found = run_mypy(python, place) if request.param == "mypy" else run_pyright(python, place)
    collected: Reports = {name: {} for name in PROGRAMS}
    for name, line, message in found:
        collected[name][line] = f"{collected[name].get(line, '')}{message}\n"
    return collected


def run_mypy(python: Path, place: Path) -> Iterator[tuple[str, int, str]]:
    """Program, line and message of everything that mypy says."""
    command = ["-m", "mypy", "--strict", "--python-executable", str(python), "--no-incremental", *PROGRAMS]
    done = run(sys.executable, *command, cwd=place)
    assert "error" in done.stdout, done.stdout + done.stderr
    for name, line, message in re.findall(r"^(\w+\.py):(\d+): \w+: (.*)$", done.stdout, re.MULTILINE):
        yield name, int(line), message


def run_pyright(python: Path, place: Path) -> Iterator[tuple[str, int, str]]:
    """The same of pyright."""
    if not (PYRIGHT.is_file() and shutil.which("node")):
        missing = "Node 20 or newer and `npm ci --ignore-scripts` in tests/node are needed"
        assert "CI" not in os.environ, missing
        pytest.skip(missing)
    settings = {"typeCheckingMode": "strict", "include": list(PROGRAMS)}
    (place / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = run("node", PYRIGHT, "--outputjson", "--pythonpath", python, "--project", place, cwd=place)
    for one in json.loads(done.stdout)["generalDiagnostics"]:
        yield Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"]


def test_types_are_as_they_are_documented(reports: Reports) -> None:
    report = reports["shown.py"]
    assert report.keys() == set(numbers(SHOWN).values())
    for expression, number in numbers(SHOWN).items():
        said = re.sub(r"\b(\w+\.)+(?=\w)", "", report[number])
        assert f'is "{REVEALED[expression]}"' in said, f"{expression}: {said}"


def test_every_option_is_seen_by_its_name(reports: Reports) -> None:
    for function, number in numbers(SIGNATURES).items():
        said = reports["signatures.py"][number]
        missing = [name for name in OPTIONS if not re.search(rf"\b{name}\b", said)]
        assert not missing, f"{function}: {said}"


def test_every_option_takes_its_default(reports: Reports) -> None:
    assert reports["calls.py"] == {}


def test_mistakes_are_errors(reports: Reports) -> None:
    accepted = {name for name, number in numbers(MISTAKES).items() if number not in reports["mistakes.py"]}
    assert accepted == set()


def test_the_embedded_application_is_correct(reports: Reports) -> None:
    assert reports["application.py"] == {}
