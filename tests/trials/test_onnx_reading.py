"""Our reading of ONNX files beside protobuf's: the trial with few files, and that it would notice a blind reader."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from runtime.graph import reader
from tests.trials import onnx_reading as trial


def test_what_ours_reads_is_what_protobuf_reads() -> None:
    counts, missed = trial.try_changes(1500, seed=1)
    assert missed == []
    assert counts[trial.READ] > 30
    assert counts[trial.REFUSED] > 100


def test_the_graph_that_is_changed_is_read_whole(tmp_path: Path) -> None:
    assert trial.compare(trial.make_graph().SerializeToString(), tmp_path / "model.onnx") == trial.READ


def test_a_blind_reader_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that takes the last of what comes twice, as protobuf does with numbers, but not with messages."""
    whole = trial.make_graph()
    more = trial.make_graph()
    del more.graph.node[1:]
    twice = whole.SerializeToString() + more.SerializeToString()
    assert trial.compare(twice, tmp_path / "model.onnx") == trial.REFUSED
    read = trial.read_model
    (tmp_path / "more.onnx").write_bytes(more.SerializeToString())
    monkeypatch.setattr(trial, "read_model", lambda _: read(tmp_path / "more.onnx"))
    assert trial.compare(twice, tmp_path / "model.onnx") == trial.BLIND


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
        reader.read_model(tmp_path / "model.onnx")


def test_changes_are_of_every_kind() -> None:
    chance, whole = random.Random(0), trial.make_graph().SerializeToString()
    for one in trial.CHANGES:
        assert any(one(whole, chance) != whole for _ in range(20))
        one(b"", chance)
