"""`pytorch_model.bin`: refused, or read where the user allows it; what it might run never runs."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from export.checkpoint import hub, pickle_file
from tests.support.building import QUICK, contents, error_line, run_here
from tests.support.checkpoints import open_checkpoint, write_checkpoint

SAME = ("model.onnx", "model.onnx_data", "config.json", "tokenizer.json", "golden.json")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pickles") / "tiny"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def oracle(tiny: Path) -> GPT2LMHeadModel:
    return open_checkpoint(tiny)


def without_safetensors(tiny: Path, target: Path) -> Path:
    """The same checkpoint, its weights left out."""
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_bin_makes_the_same_model_as_safetensors(
    tiny: Path, oracle: GPT2LMHeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool
) -> None:
    folder = without_safetensors(tiny, tmp_path / "bin" / "tiny")
    state = oracle.state_dict()  # lm_head.weight is wte.weight, in the same memory
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    before = contents(folder)
    assert run_here(monkeypatch, folder, "--allow-pickle", "--output", tmp_path / "a", *QUICK) == 0
    assert run_here(monkeypatch, tiny, "--output", tmp_path / "b", *QUICK) == 0
    for name in SAME:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "bin"]


def test_without_the_option_it_is_refused_and_the_option_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = without_safetensors(tiny, tmp_path / "tiny")
    torch.save({}, folder / "pytorch_model.bin")
    assert run_here(monkeypatch, folder, "--output", tmp_path / "model", *QUICK) == 1
    said = error_line(capsys.readouterr().err)
    assert "pytorch_model.bin is a pickle" in said
    assert "save_pretrained" in said
    assert "--allow-pickle" in said


class Payload:
    """What unpickling would run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"echo ran > {self.proof}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_payload_is_refused_and_does_not_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], writer: str
) -> None:
    folder, proof = without_safetensors(tiny, tmp_path / "tiny"), tmp_path / "proof"
    if writer == "torch":
        torch.save({"wte.weight": Payload(proof)}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(proof)))
    assert run_here(monkeypatch, folder, "--allow-pickle", "--output", tmp_path / "model", *QUICK) == 1
    assert "holds more than tensors, and is not read" in error_line(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 and no more"])
def test_a_damaged_file_is_named(tiny: Path, tmp_path: Path, content: bytes) -> None:
    folder = without_safetensors(tiny, tmp_path / "tiny")
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        pickle_file.convert(folder, tmp_path / "converted")


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, torch.zeros(3)])
def test_what_is_no_checkpoint_is_named(tiny: Path, tmp_path: Path, value: object) -> None:
    folder = without_safetensors(tiny, tmp_path / "tiny")
    torch.save(value, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a dictionary of tensors is expected"):
        pickle_file.convert(folder, tmp_path / "converted")


def test_nothing_to_read_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = without_safetensors(tiny, tmp_path / "tiny")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is missing; --allow-pickle reads"):
        pickle_file.convert(folder, tmp_path / "converted")


def test_with_safetensors_the_option_is_an_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(monkeypatch, tiny, "--allow-pickle", "--output", tmp_path / "model", *QUICK) == 1
    assert "has safetensors; leave --allow-pickle out" in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_with_random_weights_the_option_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_here(monkeypatch, "random:gpt2", "--allow-pickle") == 2


def test_without_torch_the_extra_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pickle_file.importlib.util, "find_spec", lambda _: None)
    assert run_here(monkeypatch, tiny, "--allow-pickle", "--output", tmp_path / "model", *QUICK) == 1
    assert "needs torch, which is not installed: pip install -e '.[export]'" in error_line(capsys.readouterr().err)


def test_of_a_hub_repository_the_pickle_is_taken_only_where_there_is_nothing_else() -> None:
    assert hub._pickles("a/b", {"config.json", "pytorch_model.bin"}, Path) == ["pytorch_model.bin"]
    with pytest.raises(ValueError, match="a/b has safetensors"):
        hub._pickles("a/b", {"model.safetensors", "pytorch_model.bin"}, Path)
    with pytest.raises(ValueError, match=r"a/b has no pytorch_model\.bin"):
        hub._pickles("a/b", {"tf_model.h5"}, Path)


def test_shards_make_the_same_model_as_safetensors(
    tiny: Path,
    oracle: GPT2LMHeadModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = without_safetensors(tiny, tmp_path / "shards" / "tiny")
    oracle.save_pretrained(folder, safe_serialization=False, max_shard_size="200KB")
    shards = sorted(folder.glob("pytorch_model-*.bin"))
    assert len(shards) > 1
    assert run_here(monkeypatch, folder, "--output", tmp_path / "a", *QUICK) == 1
    assert f"{shards[0].name} is a pickle" in error_line(capsys.readouterr().err)
    assert run_here(monkeypatch, folder, "--allow-pickle", "--output", tmp_path / "a", *QUICK) == 0
    assert run_here(monkeypatch, tiny, "--output", tmp_path / "b", *QUICK) == 0
    for name in SAME:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"names files that are missing: {shards[1].name}"):
        pickle_file.convert(folder, tmp_path / "c")
