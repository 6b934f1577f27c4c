"""The command `gpt2-edge` in this process."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from runtime.cli import parser as cli
from tests.support.command_line import Command


@pytest.fixture
def command(demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command with the demo as its default model: status, standard output and error."""
    monkeypatch.setenv("GPT2_EDGE_MODEL", str(demo_fp32_folder))

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = cli.main(arguments)
        return status, *capsys.readouterr()

    return run
