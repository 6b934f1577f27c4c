"""Checkpoints of any layout open; those that are damaged, incomplete or of another kind are refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from export import build
from export.checkpoint.checkpoint import model_name, open_checkpoint
from tests.support.building import QUICK, byte_tokenizer, contents, error_line, run_here, write_tiny

Change = Callable[[Path], object]
HEAD = "lm_head.weight"
NORM = "transformer.h.0.ln_1.bias"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def earlier(tiny: Path) -> Path:
    """A model that was built of it."""
    build.main([str(tiny), *QUICK, "--output", str(tiny.with_name("model"))])
    return tiny.with_name("model")


def remove(name: str) -> Change:
    return lambda checkpoint: (checkpoint / name).unlink()


def replace(name: str, text: str) -> Change:
    return lambda checkpoint: (checkpoint / name).write_text(text, encoding="utf-8")


def configure(**changes: object) -> Change:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


def retensor(edit: Callable[[dict[str, NDArray[np.float32]]], object]) -> Change:
    def change(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / "model.safetensors")
        edit(tensors)
        save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})

    return change


def truncate(n_bytes: int) -> Change:
    return lambda checkpoint: os.truncate(checkpoint / "model.safetensors", n_bytes)


def overwrite(start: int, data: bytes) -> Change:
    def change(checkpoint: Path) -> None:
        with (checkpoint / "model.safetensors").open("r+b") as file:
            file.seek(start)
            file.write(data)

    return change


def only_a_pickle(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")


def index_without_shards(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def index_of_elsewhere(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../model.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def larger_tokenizer(checkpoint: Path) -> None:
    byte_tokenizer(400).save(str(checkpoint / "tokenizer.json"))


def spoil(tensors: dict[str, NDArray[np.float32]], value: float) -> None:
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), "config.json is missing"),
        (replace("config.json", '{"model_type": "gpt2",'), "config.json is not JSON"),
        (replace("config.json", "[]"), "config.json is not a GPT-2 checkpoint's"),
        (configure(model_type="llama"), "model_type is 'llama', 'gpt2' or 'openai-gpt' is needed"),
        (configure(n_embd="wide"), "n_embd is 'wide'"),
        (configure(n_head=3), "n_embd 64 is not a multiple of n_head 3"),
        (configure(n_layer=3), "no tensor 'h.2.ln_1.weight', which config.json asks for"),
        (configure(n_positions=129), r"wpe.weight is \[128, 64\], but config.json makes it \[129, 64\]"),
        (configure(vocab_size=100), "token id 256 .*vocab_size 100"),
        (remove("model.safetensors"), "model.safetensors is missing; transformers' save_pretrained writes one"),
        (only_a_pickle, r"pytorch_model.bin is a pickle, which is not read. .*save_pretrained\('DIR'\)"),
        (index_without_shards, "names files that are missing: model-00001-of-00002.safetensors"),
        (index_of_elsewhere, r"is not an index of files with weights: it names \.\./model.safetensors"),
        (
            retensor(lambda tensors: tensors.update({NORM: tensors[NORM][:63]})),
            r"model.safetensors: transformer.h.0.ln_1.bias is \[63\], but config.json makes it \[64\]",
        ),
        (truncate(0), "model.safetensors is damaged or not a safetensors file"),
        (truncate(100), "model.safetensors is damaged or not a safetensors file"),
        (truncate(100_000), "model.safetensors is damaged or not a safetensors file"),
        (overwrite(0, b"\xff" * 8), "model.safetensors is damaged or not a safetensors file"),
        (overwrite(8, b"not json"), "model.safetensors is damaged or not a safetensors file"),
        (retensor(lambda tensors: tensors.pop("transformer.ln_f.bias")), "no tensor 'ln_f.bias'"),
        (retensor(lambda tensors: tensors.update(extra=np.ones(3, np.float32))), "no part of GPT-2 .*extra"),
        (
            retensor(lambda tensors: spoil(tensors, np.nan)),
            "model.safetensors: transformer.h.1.mlp.c_fc.weight holds NaN",
        ),
        (retensor(lambda tensors: spoil(tensors, -np.inf)), "h.1.mlp.c_fc.weight holds NaN or infinity"),
        (
            remove("tokenizer.json"),
            "has no tokenizer, neither tokenizer.json nor vocab.json and merges.txt: --tokenizer",
        ),
        (replace("tokenizer.json", '{"version": "1.0"}'), "tokenizer.json is not a tokenizer"),
        (replace("tokenizer.json", ""), "tokenizer.json is not a tokenizer"),
        (larger_tokenizer, "token id 399 .*vocab_size 257"),
        (replace("generation_config.json", "{"), "generation_config.json is not JSON"),
        (replace("tokenizer_config.json", "3"), "tokenizer_config.json is not a JSON object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_that_cannot_be_built(
    tiny: Path,
    earlier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Change,
    message: str,
) -> None:
    checkpoint = tmp_path / "checkpoints" / "tiny"
    shutil.copytree(tiny, checkpoint)
    change(checkpoint)
    before = contents(earlier)
    assert run_here(monkeypatch, checkpoint, *QUICK, "--output", earlier, "--force") == 1
    assert re.search(message, error_line(capsys.readouterr().err))
    assert contents(earlier) == before
    assert not list(earlier.parent.glob(".*"))


def test_shards_hold_the_same_tensors(tiny: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "sharded"
    shutil.copytree(tiny, checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    names, index = sorted(tensors), {}
    for number in range(3):
        shard = {name: tensors[name] for name in names[number::3]}
        index.update(dict.fromkeys(shard, f"model-{number + 1:05d}-of-00003.safetensors"))
        save_file(shard, checkpoint / index[names[number]])
    (checkpoint / "model.safetensors").unlink()
    text = json.dumps({"metadata": {}, "weight_map": index})
    (checkpoint / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    opened, expected = (open_checkpoint(str(folder), tmp_path).tensors for folder in (checkpoint, tiny))
    for name in names:
        plain = name.removeprefix("transformer.")
        np.testing.assert_array_equal(opened[plain], expected[plain])


def test_one_file_wins_over_shards(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "both")
    (tmp_path / "both" / "model.safetensors.index.json").write_text("left by an earlier save", encoding="utf-8")
    assert open_checkpoint(str(tmp_path / "both"), tmp_path).name == "both"


def test_a_folder_is_named_by_its_path(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    assert {model_name(source) for source in (".", "./", str(tiny), f"{tiny}/", "../tiny", f"../{tiny.name}//.")} == {
        "tiny"
    }


def test_a_tied_matrix_is_read_under_either_name(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "head")
    retensor(lambda tensors: tensors.update({HEAD: tensors.pop("transformer.wte.weight")}))(tmp_path / "head")
    opened, expected = (open_checkpoint(str(folder), tmp_path).tensors for folder in (tmp_path / "head", tiny))
    np.testing.assert_array_equal(opened["wte.weight"], expected["wte.weight"])
    assert opened.left_out() is None


@pytest.mark.parametrize("change", [0.0, 1.0])
def test_an_output_layer_that_is_tied_away_is_said_to_be_left_out(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: float
) -> None:
    def add(tensors: dict[str, NDArray[np.float32]]) -> None:
        head = tensors["transformer.wte.weight"].copy()
        head[-1, -1] += change
        tensors[HEAD] = head

    shutil.copytree(tiny, tmp_path / "hidden")
    retensor(add)(tmp_path / "hidden")
    opened = open_checkpoint(str(tmp_path / "hidden"), tmp_path)
    said = capsys.readouterr().out
    assert said == "" if change == 0 else "model.safetensors: lm_head.weight is left out" in said
    np.testing.assert_array_equal(
        opened.tensors["wte.weight"], open_checkpoint(str(tiny), tmp_path).tensors["wte.weight"]
    )
