"""What README shows is there: commands parse, Python compiles, targets and files exist."""

from __future__ import annotations

import re
import shlex

import pytest

from export.arguments import argument_parser as build_parser
from runtime.cli import argument_parser
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0] for _, block in BLOCKS for line in block.splitlines()]
COMMANDS = [line.split("| ")[-1] for line in LINES if re.match(r"(printf .*\| )?gpt2-edge ", line)]
BUILDS = [line for line in LINES if line.startswith("python export/build.py")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    given = argument_parser().parse_args(shlex.split(command)[1:])
    assert callable(given.command)


@pytest.mark.parametrize("command", BUILDS)
def test_builds_parse(command: str) -> None:
    assert build_parser().parse_args(shlex.split(command)[2:]).checkpoint


def test_there_are_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {
        "generate", "complete", "score", "perform", "evaluate", "check", "info",
    }  # fmt: skip
    assert BUILDS


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_python_compiles(code: str) -> None:
    compile(code, "README.md", "exec")


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`?\bmake ([a-z-]+)\b", README))
    assert {"demo", "test", "bench-quick"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets - {"makes"}), targets


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target
