"""Each promise of SECURITY.md names a test that is there."""

from __future__ import annotations

import ast
import re

import pytest

from runtime.model import config, folder, integrity
from tests.support.building import REPOSITORY

TEXT = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"^\| (.+) \| `(tests/[\w/]+\.py)::(test_\w+)` \|$", TEXT, flags=re.MULTILINE)


def test_there_are_promises() -> None:
    assert len(NAMED) >= 15
    rows = TEXT.split("| promise | test |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    assert len(rows) == len(NAMED)


@pytest.mark.parametrize(("promise", "path", "name"), NAMED)
def test_a_promise_names_a_test(promise: str, path: str, name: str) -> None:
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_limits_are_those_of_the_code() -> None:
    assert folder.MAX_TEXT_BYTES == 4 << 20
    assert integrity._MAX_CHECKSUMS_BYTES == 1 << 20
    assert f"{integrity._MAX_FILES} files" in TEXT
    assert "at most five times" in TEXT
    assert folder._N_TRIES == 5
    assert config.LIMITS


def test_the_limit_of_a_template_is_that_of_the_code() -> None:
    from runtime.server.chat_templates import template_limits

    assert f"A template has {template_limits.MAX_SECONDS:g} seconds" in TEXT
