"""Our reading of ONNX files beside protobuf's: the trial with few files, and that it would notice a blind reader."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from runtime.model.onnx_scan import read_references

from runtime.model import onnx_scan as onnx_file
from tests.trials import onnx_reading as trial


def test_nothing_is_missed() -> None:
    counts, missed = trial.try_changes(1500, seed=1)
    assert missed == []
    assert counts[trial.READ] > 30
    assert counts[trial.REFUSED] > 100


def test_a_blind_reader_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that steps over what it does not expect, as protobuf does, but sees numbers of other bits."""
    monkeypatch.setattr(onnx_file, "_number", onnx_file._varint)
    whole = trial.make_graph()
    graph = whole.graph.SerializeToString()
    whole.ClearField("graph")
    hidden = whole.SerializeToString() + b"\xba\x80\x80\x80\x10" + trial.varint(len(graph)) + graph
    monkeypatch.setattr(trial, "read_by_protobuf", lambda _: iter([trial.make_graph()]))
    assert trial.compare(hidden, tmp_path / "model.onnx") == trial.BLIND


@pytest.mark.parametrize(
    "begin",
    [b"\xba\x80\x80\x80\x10", b"\xba\x00", b"\xba\x80\x80\x80\x80\x00", b"\x02", b"\xff\xff\xff\xff\x0f"],
    ids=["too large", "longer than needed", "six bytes", "no number", "the largest"],
)
def test_numbers_that_readers_read_differently_are_refused(tmp_path: Path, begin: bytes) -> None:
    """`3a` is the tag of a model's graph."""
    whole = trial.make_graph()
    graph = whole.graph.SerializeToString()
    (tmp_path / "model.onnx").write_bytes(begin + trial.varint(len(graph)) + graph)
    with pytest.raises(ValueError, match="damaged, or no ONNX file"):
        read_references(tmp_path / "model.onnx")


def test_changes_are_of_every_kind() -> None:
    chance, whole = random.Random(0), trial.make_graph().SerializeToString()
    for one in trial.CHANGES:
        assert any(one(whole, chance) != whole for _ in range(20))
        one(b"", chance)
