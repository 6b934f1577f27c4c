"""Injected faults, few of each kind: nothing goes wrong, and what would is noticed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.model.memory import Budget

pytest.importorskip("fastapi", reason="the server is an extra: pip install 'gpt2-edge[server]'")
pytest.importorskip("llguidance")
from export.folder import folder as publishing
from runtime.server.engine.scheduler import Scheduler
from tests.trials import faults


def test_the_server_bears_faults(demo_int8_folder: Path) -> None:
    counts, wrong = faults.try_server(demo_int8_folder, 60, seed=1)
    assert wrong == []
    assert counts["faults"] > 15
    assert min(counts["answers"], counts["errors"]) > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_thread_dies_is_noticed(demo_int8_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise faults.Panic

    monkeypatch.setattr(Scheduler, "_recover", die)
    monkeypatch.setattr(faults, "PLACES", ("onnxruntime",))
    monkeypatch.setattr(faults, "LONGEST", 5)
    monkeypatch.setattr(faults, "ASKED", [{"stream": True}])
    _, wrong = faults.try_server(demo_int8_folder, 20, seed=1)
    assert wrong


def test_the_budget_bears_faults(demo_int8_folder: Path) -> None:
    n_failed, wrong = faults.try_budget(demo_int8_folder, 100, seed=1)
    assert n_failed > 40
    assert wrong == []


def test_a_budget_that_loses_bytes_is_noticed(demo_int8_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "give_back", lambda *_: None)
    _, wrong = faults.try_budget(demo_int8_folder, 20, seed=1)
    assert wrong


@pytest.mark.skipif(sys.platform == "win32", reason="there the lock's file is deleted another way")
def test_publications_bear_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "ERRORS", faults.ERRORS[:1])
    n, wrong = faults.try_publications()
    assert n > 200
    assert wrong == []


def test_a_publication_that_loses_a_folder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchange(new: Path, old: Path, aside: Path) -> None:
        old.rename(aside)
        new.rename(old)

    def forget(work: Path, *_: Any) -> None:
        publishing.shutil.rmtree(work, ignore_errors=True)

    monkeypatch.setattr(publishing, "_exchange", exchange)
    monkeypatch.setattr(publishing, "_leave", forget)
    monkeypatch.setattr(faults, "ERRORS", faults.ERRORS[:1])
    _, wrong = faults.try_publications()
    assert wrong


def test_every_place_is_reached(demo_int8_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "LONGEST", 1)
    for place in faults.PLACES:
        monkeypatch.setattr(faults, "PLACES", (place,))
        counts, wrong = faults.try_server(demo_int8_folder, 4, seed=2)
        assert wrong == []
        assert counts["faults"] > 0, place
