"""Every program in examples/ runs on the demo, and does what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import runtime
from runtime.model.model import Model
from tests.support.building import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
CORPUS = "The old king had three sons.\n\nA mouse.\n"


def run(name: str, argument: object, given: str = "", more: Sequence[str] = ()) -> str:
    """What the program prints."""
    command = [sys.executable, str(EXAMPLES / name), str(argument), *more]
    done = subprocess.run(command, input=given, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_stream(demo_int8_folder: Path, demo_int8: Model) -> None:
    prompt = "Once upon a time there was a little mouse who"
    text = runtime.generate(prompt, model=demo_int8, max_new_tokens=120, temperature=0.7, top_p=0.9, seed=7)
    assert run("stream.py", demo_int8_folder) == f"{prompt}{text}\n"


def test_batch(demo_int8_folder: Path) -> None:
    printed = run("batch.py", demo_int8_folder)
    assert len(re.findall(r"^(?:One day|At night|In the morning) the \w+\|", printed, re.MULTILINE)) == 6
    assert len(re.findall(r"first tokens: \d+%, \d+%, \d+%$", printed, re.MULTILINE)) == 6


def test_structured_output(demo_int8_folder: Path) -> None:
    pytest.importorskip("llguidance")
    choice, year, character = run("structured_output.py", demo_int8_folder).splitlines()
    assert choice in (" sad", " happy", " angry")
    assert re.fullmatch(" 1[0-9]{3}", year)
    assert re.search(r"'animal': '(mouse|fox|owl)'", character)


def test_prefix(demo_int8_folder: Path) -> None:
    first, *texts = run("prefix.py", demo_int8_folder).splitlines()
    assert re.match(r"\d+ tokens, 256 of them", first)
    assert texts[0].startswith("The eldest")


def test_embedded_app(demo_int8_folder: Path, demo_int8: Model) -> None:
    answers = run("embedded_app.py", demo_int8_folder).splitlines()
    options = {"max_new_tokens": 40, "temperature": 0.8, "top_p": 0.9, "seed": 7}
    for answer, prompt in zip(answers, ["The fox said", "The owl said", "The hen said"], strict=True):
        assert answer == f"{runtime.generate(prompt, model=demo_int8, **options)!r} (length)"  # type: ignore[arg-type]


def test_score_corpus(demo_int8_folder: Path, demo_int8: Model) -> None:
    *each, total = map(json.loads, run("score_corpus.py", demo_int8_folder, CORPUS).splitlines())
    scores = [runtime.score(text, model=demo_int8) for text in CORPUS.split("\n") if text]
    assert [line["perplexity"] for line in each] == [round(score.perplexity, 2) for score in scores]
    assert total["tokens"] == sum(len(score.ids) for score in scores)


def test_openai_client(demo_int8: Model) -> None:
    pytest.importorskip("openai")
    serving = pytest.importorskip("tests.support.serving")
    with serving.running(demo_int8) as server:
        streamed, *rest = run("openai_client.py", server.url).splitlines()
    assert streamed
    assert "completion_tokens=20" in rest[-1]


def test_every_program_is_listed_and_tested() -> None:
    listed = set(re.findall(r"\b(\w+\.(?:py|ipynb))\b", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    tested = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f'"{name}"' in tested for name in listed)
