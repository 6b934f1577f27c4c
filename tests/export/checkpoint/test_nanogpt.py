"""nanoGPT's `ckpt.pt` and `meta.pkl`: the model that nanoGPT has, and nothing in the files is executed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import runtime
from export import build
from export.checkpoint import nanogpt
from export.checkpoint.checkpoint import open_checkpoint
from tests.support.building import QUICK, byte_tokenizer, error_line, run_here
from tests.support.checkpoints import CLOSE, difference, folder_logits, some_ids
from tests.support.plain_gpt2 import State, logits, random_state

CHARACTERS = sorted(set("\n !,.abcdefghijklmnopqrstuvwxyzABCé中"))
N_HEAD = 4


def arguments(**changed: Any) -> dict[str, Any]:
    """nanoGPT's model_args."""
    sizes = {"vocab_size": len(CHARACTERS), "block_size": 64, "n_layer": 2, "n_head": N_HEAD, "n_embd": 64}
    return sizes | {"dropout": 0.0, "bias": False} | changed


def write_nanogpt(folder: Path, prefix: str = "", **changed: Any) -> State:
    """A `ckpt.pt` as nanoGPT's train.py writes it; returns its weights."""
    folder.mkdir(exist_ok=True, parents=True)
    about = arguments(**changed)
    state = random_state(
        about["vocab_size"], about["block_size"], about["n_embd"], about["n_layer"], bias=about["bias"]
    )
    optimizer = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}
    checkpoint = {
        "model": {f"{prefix}{name}": tensor for name, tensor in state.items()},
        "optimizer": optimizer,
        "model_args": about,
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "characters", "compile": True, "learning_rate": 1e-3},
    }
    torch.save(checkpoint, folder / "ckpt.pt")
    return state


def write_meta(folder: Path, **changed: Any) -> Path:
    """`meta.pkl` as nanoGPT's data/shakespeare_char/prepare.py writes it."""
    folder.mkdir(exist_ok=True, parents=True)
    to_id = {character: id_ for id_, character in enumerate(CHARACTERS)}
    table = {"vocab_size": len(to_id), "itos": {id_: c for c, id_ in to_id.items()}, "stoi": to_id} | changed
    (folder / "meta.pkl").write_bytes(pickle.dumps(table))
    return folder / "meta.pkl"


def build_file(file: Path, output: Path, *options: str) -> Path:
    build.main([str(file), "--allow-pickle", *options, "--precision", "fp32", *QUICK, "--output", str(output)])
    return output


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_those_of_nanogpt(tmp_path: Path, prefix: str, bias: bool) -> None:
    state = write_nanogpt(tmp_path / "out", prefix, bias=bias)
    write_meta(tmp_path / "out")
    ids = some_ids(30, len(CHARACTERS))
    built = build_file(tmp_path / "out" / "ckpt.pt", tmp_path / "model")
    assert difference(folder_logits(built, ids), logits(state, ids, N_HEAD, "none")) < CLOSE


def test_a_character_model_writes_its_characters(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "out-characters")
    write_meta(tmp_path / "data")
    built = build_file(
        tmp_path / "out-characters" / "ckpt.pt", tmp_path / "model", "--tokenizer", str(tmp_path / "data")
    )
    text = runtime.generate("a cé中,\n", model=built, max_new_tokens=20, temperature=1.0, seed=1)
    assert len(text) == 20
    assert set(text) <= set(CHARACTERS)
    with runtime.load(built) as model:
        assert model.config.eos_token_ids == frozenset()
        with pytest.raises(ValueError, match="Q"):
            runtime.generate("Q", model=model)
    card = (built / "README.md").read_text(encoding="utf-8")
    assert "made by gpt2-edge from a nanoGPT checkpoint on disk, `out-characters`" in card
    assert "python export/build.py ckpt.pt --allow-pickle --tokenizer data" in card


def test_the_model_is_named_after_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nanogpt(tmp_path / "out-characters")
    write_meta(tmp_path / "out-characters")
    monkeypatch.chdir(tmp_path)
    build.main(["out-characters/ckpt.pt", "--allow-pickle", *QUICK])
    assert (tmp_path / "models" / "out-characters-int8" / "model.onnx").is_file()


@given(st.text(alphabet=CHARACTERS))
def test_characters_are_tokens(text: str) -> None:
    tokenizer = CHARACTER_TOKENIZER[0]
    ids = tokenizer.encode(text).ids
    assert ids == [CHARACTERS.index(character) for character in text]
    assert tokenizer.decode(ids) == text


CHARACTER_TOKENIZER: list[Tokenizer] = []


@pytest.fixture(autouse=True, scope="module")
def _character_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    CHARACTER_TOKENIZER[:] = [nanogpt.character_tokenizer(write_meta(tmp_path_factory.mktemp("meta")))]


def test_a_padded_vocabulary_loses_its_padding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = write_nanogpt(tmp_path / "out", vocab_size=320, bias=True)
    byte_tokenizer(300).save(str(tmp_path / "tokenizer.json"))
    built = build_file(tmp_path / "out" / "ckpt.pt", tmp_path / "model", "--tokenizer", str(tmp_path))
    assert "the vocabulary is padded from 300 to 320 ids; the padding is left out" in capsys.readouterr().out
    ids = some_ids(30, 300)
    assert difference(folder_logits(built, ids), logits(state, ids, N_HEAD, "none")[:, :300]) < CLOSE
    with runtime.load(built) as model:
        assert model.config.eos_token_ids == {299}


def test_a_larger_vocabulary_that_is_no_padding_stays(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "out", vocab_size=310, bias=True)
    byte_tokenizer(300).save(str(tmp_path / "tokenizer.json"))
    checkpoint = open_checkpoint(str(tmp_path / "out" / "ckpt.pt"), tmp_path, tokenizer=tmp_path, allow_pickle=True)
    assert checkpoint.config.vocab_size == 310


def test_an_output_layer_of_its_own_is_kept(tmp_path: Path) -> None:
    state = write_nanogpt(tmp_path / "out")
    state["lm_head.weight"] = state["lm_head.weight"] + 1.0
    torch.save({"model": state, "model_args": arguments()}, tmp_path / "out" / "ckpt.pt")
    write_meta(tmp_path / "out")
    checkpoint = open_checkpoint(str(tmp_path / "out" / "ckpt.pt"), tmp_path, allow_pickle=True)
    assert not checkpoint.config.tie_word_embeddings
    np.testing.assert_array_equal(checkpoint.tensors["lm_head.weight"], state["lm_head.weight"].numpy())


# refused -----------------------------------------------------------------------------------------------------------


class Payload:
    """What unpickling would run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"echo ran > {self.proof}",)


def test_without_the_option_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nanogpt(tmp_path / "out")
    write_meta(tmp_path / "out")
    assert run_here(monkeypatch, tmp_path / "out" / "ckpt.pt", *QUICK, "--output", tmp_path / "model") == 1
    line = error_line(capsys.readouterr().err)
    assert "ckpt.pt is a pickle, which may run code when it is read; --allow-pickle reads it" in line
    assert run_here(monkeypatch, tmp_path / "out", *QUICK, "--output", tmp_path / "model") == 1
    line = error_line(capsys.readouterr().err)
    assert f"holds a checkpoint of nanoGPT: give {tmp_path / 'out' / 'ckpt.pt'} itself, with --allow-pickle" in line


@pytest.mark.parametrize("file", ["ckpt.pt", "meta.pkl"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_nothing_is_executed(tmp_path: Path, file: str, protocol: int) -> None:
    write_nanogpt(tmp_path / "out")
    write_meta(tmp_path / "out")
    proof = tmp_path / "proof"
    content = {"model": Payload(proof), "model_args": arguments(), "stoi": Payload(proof)}
    (tmp_path / "out" / file).write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match="damaged, or holds more than"):
        open_checkpoint(str(tmp_path / "out" / "ckpt.pt"), tmp_path, allow_pickle=True)
    assert not proof.exists()
    # the payload is one
    (tmp_path / "out" / file).read_bytes() and pickle.loads((tmp_path / "out" / file).read_bytes())
    assert proof.exists()


def without_a_tensor(checkpoint: dict[str, Any]) -> None:
    checkpoint["model"].pop("transformer.h.1.mlp.c_fc.weight")


def with_another_tensor(checkpoint: dict[str, Any]) -> None:
    checkpoint["model"]["transformer.h.1.rotary"] = torch.zeros(4)


def with_another_shape(checkpoint: dict[str, Any]) -> None:
    checkpoint["model"]["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(64, 256)


def with_biases_promised(checkpoint: dict[str, Any]) -> None:
    checkpoint["model_args"]["bias"] = True


def of_whole_numbers(checkpoint: dict[str, Any]) -> None:
    checkpoint["model"]["transformer.wpe.weight"] = torch.zeros(64, 64, dtype=torch.int64)


def without_a_size(checkpoint: dict[str, Any]) -> None:
    checkpoint["model_args"].pop("block_size")


def with_a_thousand_layers(checkpoint: dict[str, Any]) -> None:
    checkpoint["model_args"]["n_layer"] = 1000


def with_an_impossible_size(checkpoint: dict[str, Any]) -> None:
    checkpoint["model_args"]["n_head"] = 5


def of_something_else(checkpoint: dict[str, Any]) -> None:
    checkpoint.pop("model_args")


def without_a_model(checkpoint: dict[str, Any]) -> None:
    checkpoint["model"] = [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_tensor, "the model has no tensor 'h.1.mlp.c_fc.weight'"),
        (with_another_tensor, "tensors that are no part of GPT-2 would be lost: h.1.rotary"),
        (with_another_shape, r"h.1.mlp.c_fc.weight is \[64, 256\], but model_args make it \[256, 64\]"),
        (with_biases_promised, "the model has no tensor 'ln_f.bias'"),
        (of_whole_numbers, "wpe.weight is torch.int64; weights must be floating point"),
        (without_a_size, "model_args has no block_size"),
        (with_an_impossible_size, "model_args: n_embd 64 is not a multiple of n_head 5"),
        (with_a_thousand_layers, "has 16 tensors, and its model_args ask for 1000 layers"),
        (of_something_else, "is not a checkpoint of nanoGPT, which has model and model_args"),
        (without_a_model, "model is not a dictionary of tensors"),
    ],
)
def test_a_checkpoint_that_is_not_whole(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    file = tmp_path / "out" / "ckpt.pt"
    write_nanogpt(tmp_path / "out")
    write_meta(tmp_path / "out")
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(str(file), tmp_path, allow_pickle=True)
    assert str(file) in str(error.value)


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "out" / "ckpt.pt"
    write_nanogpt(tmp_path / "out")
    write_meta(tmp_path / "out")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"ckpt\.pt is damaged, or holds more than tensors"):
        open_checkpoint(str(file), tmp_path, allow_pickle=True)


def test_a_checkpoint_without_a_tokenizer_says_where_it_is(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: --tokenizer FOLDER .*data/NAME/meta\.pkl"):
        open_checkpoint(str(tmp_path / "out" / "ckpt.pt"), tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stoi": None}, r"has no table of characters \(stoi\)"),
        ({"stoi": {"ab": 0}}, "maps 'ab' to 0; a character and its id are expected"),
        ({"stoi": {"a": "0"}}, "maps 'a' to '0'"),
        ({"stoi": {"a": 0, "b": 2}}, "the ids of its 2 characters are not 0 to 1"),
    ],
)
def test_a_meta_that_is_none(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nanogpt.character_tokenizer(write_meta(tmp_path, **changed))


def test_more_characters_than_the_model_has(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "out", vocab_size=8)
    write_meta(tmp_path / "out")
    with pytest.raises(ValueError, match=r"token id .* but config.json has vocab_size 8"):
        open_checkpoint(str(tmp_path / "out" / "ckpt.pt"), tmp_path, allow_pickle=True)


def test_a_pytorch_model_is_given_as_its_folder(tmp_path: Path) -> None:
    torch.save({"wte.weight": torch.zeros(4, 4)}, tmp_path / "pytorch_model.bin")
    write_meta(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file; give the folder that holds the checkpoint"):
        open_checkpoint(str(tmp_path / "pytorch_model.bin"), tmp_path, allow_pickle=True)


@pytest.mark.slow
def test_optimum_exports_what_becomes_of_it(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "out")
    write_meta(tmp_path / "out")
    output = tmp_path / "model"
    build.main([str(tmp_path / "out" / "ckpt.pt"), "--allow-pickle", "--precision", "fp32", "--output", str(output)])
    report = json.loads((output / "quality.json").read_text(encoding="utf-8"))
    assert report["reference"] == "optimum's fp32 export"
    assert report["mean_kl"] < 1e-6
