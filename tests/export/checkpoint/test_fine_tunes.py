"""Folders that fine-tuning leaves, and others that are no checkpoint: each is named for what it is, with a cure."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import runtime
from export import build
from export.checkpoint import checkpoint, hub
from export.checkpoint.diagnosis import check_folder
from tests.support.building import END, QUICK, TINY, byte_tokenizer, contents, error_line, run_here, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def trained(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint as Trainer leaves it that was given no tokenizer."""
    folder = Path(shutil.copytree(tiny, tmp_path / "out" / "checkpoint-500"))
    (folder / "tokenizer.json").unlink()
    (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer that transformers saved, with a setting of its own."""
    target = tmp_path / "tokenizer"
    byte_tokenizer(TINY.vocab_size).save(str(tmp_path / "tokenizer.json"))
    saved = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=END, pad_token=END)
    saved.save_pretrained(target)
    return target


def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a build says that ends before it begins."""
    output = folder.with_name("model")
    assert run_here(monkeypatch, folder, *QUICK, "--output", output) == 1
    assert not output.exists()
    return error_line(capsys.readouterr().err)


# a tokenizer -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_tokenizer_takes_one_by_name(
    trained: Path,
    tokenizer: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "has no tokenizer" in (line := refused(trained, monkeypatch, capsys))
    assert "--tokenizer FOLDER takes that of the model it was trained from" in line
    build.main([str(trained), *QUICK, "--tokenizer", str(tokenizer), "--output", str(tmp_path / "model")])
    build.main([str(tiny), *QUICK, "--output", str(tmp_path / "whole")])
    texts = [runtime.generate("A tiny", model=tmp_path / name, max_new_tokens=9) for name in ("model", "whole")]
    assert texts[0] == texts[1]
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["pad_token"] == END


def test_the_cure_for_a_missing_tokenizer_works(
    trained: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    (trained / "config.json").write_text(json.dumps(config | {"_name_or_path": str(tokenizer)}), encoding="utf-8")
    line = refused(trained, monkeypatch, capsys)
    code = shlex.split(line[line.index("python -c") :])[2]
    assert f"T.from_pretrained('{tokenizer}')" in code  # the model it was trained from, as far as it is known
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    build.main([str(trained), *QUICK, "--tokenizer", "FOLDER", "--output", str(tmp_path / "model")])


def test_a_tokenizer_beside_the_checkpoints_is_named(
    trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(tiny / "tokenizer.json", trained.parent / "tokenizer.json")
    line = refused(trained, monkeypatch, capsys)
    options = re.findall(r"--tokenizer \S+", line)
    assert options == [f"--tokenizer {trained.parent}"]
    build.main([str(trained), *QUICK, *options[0].split(), "--output", str(tmp_path / "model")])


def test_another_tokenizer_takes_the_place_of_the_checkpoints_own(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    words = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = words["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (other / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    build.main([str(tiny), *QUICK, "--tokenizer", str(other), "--output", str(tmp_path / "model")])
    with runtime.load(tmp_path / "model") as model:
        assert model.tokenizer.encode("A").ids == [vocab["A"]]


@pytest.mark.parametrize("given", ["missing", "empty"])
def test_a_tokenizer_that_is_none_is_refused_first(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    (tmp_path / "empty").mkdir()
    place = ["--tokenizer", str(tmp_path / given), "--output", str(tmp_path / "model")]
    assert run_here(monkeypatch, tiny, *QUICK, *place) == 1
    assert f"{tmp_path / given / 'tokenizer.json'} is missing" in error_line(capsys.readouterr().err)


def test_a_vocabulary_that_is_too_large_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_tokenizer(300).save(str(tmp_path / "tokenizer.json"))
    place = ["--tokenizer", str(tmp_path), "--output", str(tmp_path / "model")]
    assert run_here(monkeypatch, tiny, *QUICK, *place) == 1
    assert "but config.json has vocab_size 257" in error_line(capsys.readouterr().err)


# what is no checkpoint ---------------------------------------------------------------------------------------------


def test_the_folder_of_a_training_names_its_checkpoints(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, trained.with_name("checkpoint-1500"))
    assert f"such as {trained.with_name('checkpoint-1500')}" in refused(trained.parent, monkeypatch, capsys)


@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_config: bool
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "adapter_model.safetensors").touch()
    if has_config:
        (folder / "config.json").write_text("{}", encoding="utf-8")
    line = refused(folder, monkeypatch, capsys)
    assert "is an adapter of PEFT for owner/base, not a whole model" in line
    assert f"python export/build.py owner/base --adapter {folder} builds both together" in line


def test_a_merged_adapter_is_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "merged"))
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    check_folder(folder)


def test_a_model_that_was_built_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = tmp_path / "built"
    build.main([str(tiny), *QUICK, "--output", str(built)])
    before = contents(built)
    line = refused(built, monkeypatch, capsys)
    assert f"is a model folder, built already: gpt2-edge generate --model {built} runs it" in line
    assert contents(built) == before
    (built / "SHA256SUMS").unlink()
    assert "is an ONNX export, without the weights to build from" in refused(built, monkeypatch, capsys)


# on the hub --------------------------------------------------------------------------------------------------------


def collect(folder: Path, *, needs_tokenizer: bool = True) -> Path:
    """What a download does with a repository that holds a folder's files."""
    names = {path.name for path in folder.iterdir()}
    return hub._collect("owner/name", names, folder.joinpath, False, needs_tokenizer)


def test_a_repository_without_a_tokenizer_is_refused_before_its_weights(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"owner/name has no tokenizer.*--tokenizer FOLDER"):
        collect(trained)
    assert collect(trained, needs_tokenizer=False) == trained


def test_a_repository_of_an_adapter_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}', encoding="utf-8")
    cure = "owner/name is an adapter of PEFT for gpt2.* hf download owner/name .*build.py gpt2 --adapter DIR builds"
    with pytest.raises(ValueError, match=cure):
        collect(tmp_path)


def test_a_hub_checkpoint_takes_another_tokenizer(
    trained: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def download(_repo_id: str, _revision: str | None, *, allow_pickle: bool, needs_tokenizer: bool) -> Path:
        asked.append(needs_tokenizer)
        return trained

    monkeypatch.setattr(hub, "download", download)
    opened = checkpoint.open_checkpoint("owner/name", tmp_path, tokenizer=tokenizer)
    assert (asked, opened.tokenizer_folder, opened.folder) == ([False], tokenizer, trained)
