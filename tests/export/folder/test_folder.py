"""The model folder: its files, and what they say."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

import runtime
from export import build
from export.folder import card
from export.verify.quality import Quality
from runtime._json import read_json
from runtime.cli import parser as cli
from tests.support.building import END, FILES, QUICK, TEXT, TINY, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "mine"
    build.main([str(tiny), "--no-reference", "--block-size", "32", "--output", str(output)])
    return output


def read(folder: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return value


def test_has_these_files_and_no_others(model: Path) -> None:
    assert {path.name for path in model.iterdir()} == FILES


def test_the_checksums_hold(model: Path) -> None:
    lines = (model / "SHA256SUMS").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    listed = dict(line.split("  ")[::-1] for line in lines)
    assert listed.keys() == FILES - {"SHA256SUMS"}
    assert listed == {name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in listed}


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
def test_sha256sum_checks_the_folder(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    command = ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"]
    subprocess.run(command, cwd=copy, check=True)
    with (copy / "model.onnx_data").open("r+b") as file:
        file.write(b"x")
    assert subprocess.run(command, cwd=copy, check=False, capture_output=True).returncode == 1


def test_quality_is_what_the_runtime_measures(model: Path, tiny: Path, tmp_path: Path) -> None:
    report = read(model, "quality.json")
    assert {"verified", "random_weights", "precision", "block_size"} < report.keys()
    assert {field.name for field in dataclasses.fields(Quality)} < report.keys()
    assert (report["verified"], report["random_weights"]) == (True, False)
    assert (report["precision"], report["block_size"]) == ("int8", 32)
    assert report["text_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert report["n_tokens"] == len(TEXT.encode()) - 1
    build.main([str(tiny), *QUICK, "--precision", "fp32", "--output", str(tmp_path / "fp32")])
    perplexity, reference = (runtime.score_text(TEXT, model=folder).perplexity for folder in (model, tmp_path / "fp32"))
    assert report["perplexity"] == pytest.approx(perplexity, rel=1e-6)
    assert report["reference_perplexity"] == pytest.approx(reference, rel=1e-6)
    assert report["loss_percent"] == pytest.approx(100 * (perplexity / reference - 1), abs=1e-4)
    assert 0.9 < report["top1_agreement"] <= 1
    assert 0 < report["mean_kl"] < 1e-3


def test_the_card_says_what_the_model_is(model: Path, tiny: Path) -> None:
    found, report = ModelCard.load(model / "README.md"), read(model, "quality.json")
    data = found.data.to_dict()
    assert data["library_name"] == "onnxruntime"
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["gpt2", "onnx", "int8"]
    assert "base_model" not in data  # a path on one machine says nothing on another
    for said in (
        "# tiny, int8",
        "int8 in blocks of 32",
        "| 2, 4, 64 |",
        "| context | 128 tokens |",
        "| vocabulary | 257 tokens |",
        f"{(model / 'model.onnx_data').stat().st_size / 1e6:.2f} MB `model.onnx_data`",
        f"Perplexity {report['perplexity']:.3f}",
        f"{report['reference_perplexity']:.3f}",
        f"a loss of {report['loss_percent']:.3f} %",
        'runtime.load("mine")',
        "made by gpt2-edge from a checkpoint on disk, `tiny`.",
        "python export/build.py tiny --no-reference --block-size 32 --output mine",
        "pip install .",
    ):
        assert said in found.text, said
    assert "pip install gpt2-edge" not in found.text  # nothing is published yet
    assert str(tiny.parent) not in found.content
    assert str(model.parent) not in found.content


@pytest.mark.parametrize(
    ("typed", "source", "commit", "shown"),
    [
        ("/home/me/fine --output=/srv/models/x", "/home/me/fine", None, "fine --output=x"),
        (
            "../fine/ --tokenizer ~/base --eval-text ./a/b.txt",
            "../fine/",
            None,
            "fine --tokenizer base --eval-text b.txt",
        ),
        ("owner/name --revision refs/pr/3", "owner/name", "c0ffee", "owner/name --revision refs/pr/3"),
        ("random:gpt2 --keep-reference '/tmp/a b'", "random:gpt2", None, "random:gpt2 --keep-reference 'a b'"),
    ],
)
def test_the_cards_command_names_no_places(typed: str, source: str, commit: str | None, shown: str) -> None:
    checkpoint = mock.Mock(source=source, commit=commit, is_random=source.startswith("random:"))
    command = card._shorten_paths(f"python export/build.py {typed}", checkpoint)
    assert command == f"python export/build.py {shown}"


def test_the_cards_commands_work(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    text = (model / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    commands = re.findall(r"`gpt2-edge (.*?)`", text)
    assert {shlex.split(command)[0] for command in commands} == {"generate", "check"}
    assert [cli.main(shlex.split(command)) for command in commands] == [0] * len(commands)


def test_a_model_that_was_not_verified_says_so(tiny: Path, tmp_path: Path) -> None:
    build.main([str(tiny), *QUICK, "--output", str(tmp_path / "model")])
    report = read(tmp_path / "model", "quality.json")
    assert (report["verified"], report["random_weights"], report["precision"]) == (False, False, "int8")
    assert not {field.name for field in dataclasses.fields(Quality)} & report.keys()
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "Not verified: this model was built with `--verify none`." in card
    assert "erplexity" not in card


def test_transformers_opens_the_folder(model: Path, tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)  # type: ignore[no-untyped-call]
    assert tokenizer("Ñandú").input_ids == runtime.load(model).tokenizer.encode("Ñandú").ids
    assert tokenizer.eos_token == END
    assert tokenizer.model_max_length == TINY.n_positions
    config = AutoConfig.from_pretrained(model)
    sizes = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "bos_token_id", "eos_token_id")
    assert {name: getattr(config, name) for name in sizes} == {name: getattr(TINY, name) for name in sizes}
    assert GenerationConfig.from_pretrained(model).eos_token_id == TINY.eos_token_id


def test_the_checkpoints_own_settings_are_kept(tiny: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(tiny, tmp_path / "tiny")
    own = {"config.json": read(tiny, "config.json") | {"task": "stories"}}
    own["generation_config.json"] = {"eos_token_id": [1, 256], "temperature": 0.9}
    own["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "ñ"}
    own["tokenizer_config.json"]["model_input_names"] = ["input_ids", "attention_mask"]  # always written
    for name, value in own.items():
        (checkpoint / name).write_text(json.dumps(value), encoding="utf-8")
    build.main([str(checkpoint), *QUICK, "--output", str(tmp_path / "model")])
    assert {name: read(tmp_path / "model", name) for name in own} == own


@pytest.mark.skipif(os.name == "nt", reason="the permissions are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_permissions_are_the_users(tiny: Path, tmp_path: Path, umask: int) -> None:
    checkpoint = shutil.copytree(tiny, tmp_path / "tiny")
    for path in checkpoint.iterdir():
        path.chmod(0o400)
    before = os.umask(umask)
    try:
        build.main([str(checkpoint), "--no-reference", "--output", str(tmp_path / "new" / "model")])
    finally:
        os.umask(before)
    made = [tmp_path / "new", tmp_path / "new" / "model", *(tmp_path / "new" / "model").iterdir()]
    for path in made:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize("value", ["NaN", "text", ""])
def test_json_that_is_none_is_named(tmp_path: Path, value: str) -> None:
    (tmp_path / "x.json").write_text(value, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json is not"):
        read_json(tmp_path / "x.json")


def test_a_model_without_a_beginning_of_text(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "odd", dataclasses.replace(TINY, bos_token_id=None, eos_token_id=5))
    build.main([str(checkpoint), *QUICK, "--output", str(tmp_path / "model")])
    assert read(tmp_path / "model", "generation_config.json") == {"bos_token_id": None, "eos_token_id": 5}
