"""What README shows is there: commands parse, Python compiles, targets and files exist."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

import runtime
from export.arguments import argument_parser as build_parser
from runtime.cli import argument_parser
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0] for _, block in BLOCKS for line in block.splitlines()]
COMMANDS = [line.split("| ")[-1] for line in LINES if re.match(r"(printf .*\| )?gpt2-edge ", line)]
PYTHON = [block for language, block in BLOCKS if language == "python"]
ELSEWHERE = r"OpenAI\(|with Client\("  # wants a server, or workers
STORY = "The old king had three sons. One day the youngest found a golden ring in the forest."
BUILDS = [line for line in LINES if line.startswith("python export/build.py")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    given = argument_parser().parse_args(shlex.split(command.split(" < ")[0])[1:])
    assert callable(given.command)


@pytest.mark.parametrize("command", BUILDS)
def test_builds_parse(command: str) -> None:
    assert build_parser().parse_args(shlex.split(command)[2:]).checkpoint


def test_there_are_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {
        "generate", "complete", "score", "perform", "evaluate", "prefix", "serve", "check", "info",
    }  # fmt: skip
    assert BUILDS


@pytest.mark.parametrize("code", PYTHON)
def test_python_compiles(code: str) -> None:
    compile(code, "README.md", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("code", [block for block in PYTHON if not re.search(ELSEWHERE, block)])
def test_python_runs(code: str, demo_int8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(demo_int8_folder, tmp_path / "models" / "demo-int8")
    monkeypatch.chdir(tmp_path)
    with runtime.load("models/demo-int8") as model:
        exec(code, {"runtime": runtime, "model": model, "article": STORY, "passage": STORY})


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`?\bmake ([a-z-]+)\b", README))
    assert {"demo", "test", "bench-quick"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets - {"makes"}), targets


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target
