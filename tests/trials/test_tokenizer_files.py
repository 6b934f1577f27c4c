"""The trial of hostile tokenizer files with few of them, and that it would notice what it looks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.model.tokenizer import file
from tests.support.vocabularies import byte_level
from tests.trials import tokenizer_files as trial


def test_no_file_crashes_or_hangs_the_process() -> None:
    counts, bad = trial.try_files(400, seed=1)
    assert bad == []
    assert counts[trial.OPENED] > 50
    assert counts[trial.REFUSED] > 50


def hostile(tmp_path: Path) -> Path:
    """A tokenizer whose decoder panics at short tokens."""
    written = json.loads(byte_level().to_str())
    written["decoder"] = {"type": "Strip", "content": "a", "start": 1, "stop": 1}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(written), encoding="utf-8")
    return path


def test_a_check_that_lets_everything_pass_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = hostile(tmp_path)
    assert trial.try_file(path.read_bytes(), path) == trial.REFUSED
    doubled: dict[str, Any] = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    written = json.loads(byte_level().to_str())
    written["normalizer"] = {"type": "Sequence", "normalizers": [doubled] * 3}
    monkeypatch.setattr(trial, "LONGEST", 10_000)
    monkeypatch.setattr(file, "check", lambda _content, _vocab_size: {})
    assert trial.try_file(json.dumps(written).encode(), path).startswith(trial.WRONG)
