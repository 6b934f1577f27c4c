"""`random:SIZE`: the same noise every time, in files that transformers opens too."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, OpenAIGPTLMHeadModel

import runtime
from export import build, pipeline
from export.checkpoint import random_weights as random_checkpoint
from export.checkpoint import weights
from export.checkpoint.checkpoint import open_checkpoint
from export.checkpoint.config import Config
from tests.support.building import END, QUICK, byte_tokenizer, contents

SMALL = Config(vocab_size=9000, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=8999, eos_token_id=8999)
SPANISH = "¿Dónde está el pingüino? ¡Mañana, en el corazón de la montaña!\nAñadió: «qué lástima»… 🐧"


@pytest.fixture(autouse=True)
def small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_checkpoint.SIZES, "small", SMALL)


def test_the_sizes_are_openais() -> None:
    parameters = {"distilgpt2": 82e6, "gpt2": 124e6, "gpt2-medium": 355e6, "gpt2-large": 774e6, "gpt2-xl": 1558e6}
    parameters["openai-gpt"] = 116.5e6
    assert random_checkpoint.SIZES.keys() == {*parameters, "small"}
    for size, expected in parameters.items():
        shapes = random_checkpoint.SIZES[size].tensor_shapes().values()
        assert sum(map(math.prod, shapes)) == pytest.approx(expected, rel=0.005)


def test_the_weights_are_the_same_everywhere(tmp_path: Path) -> None:
    for name in ("first", "second"):
        random_checkpoint.write("small", tmp_path / name)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    opened = open_checkpoint(str(tmp_path / "first"), tmp_path).tensors
    # written down, since processes and machines must agree; libraries differ in the last bits at most
    assert opened["wte.weight"][0, :3] == pytest.approx([0.00119822, 0.00031119, -0.02328877], abs=1e-7)
    assert opened["h.1.attn.c_attn.weight"][-1, -3:] == pytest.approx([-0.01035819, 0.01356744, -0.00808873], abs=1e-7)


def test_the_weights_are_drawn_as_gpt2s(tmp_path: Path) -> None:
    tensors = open_checkpoint("random:small", tmp_path).tensors
    assert tensors["wte.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert tensors["h.0.mlp.c_fc.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert tensors["h.1.mlp.c_proj.weight"].std() == pytest.approx(0.01, rel=0.05)  # 0.02 / sqrt(2 n_layer)
    assert set(tensors["h.1.ln_2.weight"]) == {1.0}
    assert set(tensors["h.1.attn.c_attn.bias"]) == {0.0}
    assert not np.array_equal(tensors["h.0.mlp.c_fc.weight"], tensors["h.1.mlp.c_fc.weight"])


@pytest.mark.parametrize("shard_bytes", [1_000_000_000, 100_000])
def test_transformers_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", shard_bytes)
    folder = tmp_path / "small"
    random_checkpoint.write("small", folder)
    model, loading = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert {key: list(names) for key, names in loading.items() if names} == {}
    expected = open_checkpoint(str(folder), tmp_path).tensors
    for name in SMALL.tensor_shapes():
        np.testing.assert_array_equal(model.transformer.get_parameter(name).detach().numpy(), expected[name])


def test_transformers_opens_a_random_gpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(random_checkpoint.SIZES["openai-gpt"], vocab_size=9000, n_embd=64, n_layer=2, n_head=4)
    monkeypatch.setitem(random_checkpoint.SIZES, "small-gpt", small)
    folder = tmp_path / "small-gpt"
    random_checkpoint.write("small-gpt", folder)
    model, loading = OpenAIGPTLMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert {key: list(names) for key, names in loading.items() if names} == {}
    opened = open_checkpoint("random:small-gpt", tmp_path)
    assert opened.config == small
    assert opened.tensors["wte.weight"].std() == pytest.approx(0.02, rel=0.01)
    output = tmp_path / "model"
    build.main(["random:small-gpt", *QUICK, "--precision", "fp32", "--output", str(output)])
    ids = [5, 6, 7, 400]
    with torch.no_grad():
        expected = model.eval()(torch.tensor([ids])).logits[0].numpy()
    with runtime.load(output, threads=1) as built:
        assert np.abs(built.new_cache(4).extend(ids, keep=4) - expected).max() < 1e-4


def test_shards_are_small_and_under_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 100_000)
    folder = tmp_path / "small"
    random_checkpoint.write("small", folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    files = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert set(index.values()) == set(files)
    assert len(files) > 3
    assert "model.safetensors" not in files
    assert index.keys() == {f"transformer.{name}" for name in SMALL.tensor_shapes()}
    largest = max(4 * math.prod(shape) for shape in SMALL.tensor_shapes().values())
    assert max(files.values()) < 100_000 + largest + 10_000
    assert {path.name for path in folder.iterdir()} - set(files) == {
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
    }


@pytest.mark.parametrize("vocab_size", [8300, 50257])
def test_the_stand_in_tokenizer_has_every_id(tmp_path: Path, vocab_size: int) -> None:
    source = random_checkpoint.DEMO_TOKENIZER
    grown = json.dumps(random_checkpoint.stand_in_tokenizer(source, vocab_size))
    tokenizer = Tokenizer.from_str(grown)
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    assert tokenizer.token_to_id(END) == vocab_size - 1
    for text in (SPANISH, "", " ", "\x00 \r\n\t", " [8300] is no token"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert len(ids) == len(Tokenizer.from_file(str(source)).encode(text, add_special_tokens=False).ids)


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    byte_tokenizer(257).save(str(tmp_path / "tokenizer.json"))
    output = tmp_path / "model"
    build.main(["random:small", "--tokenizer", str(tmp_path), *QUICK, "--output", str(output)])
    assert (output / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_a_build_says_that_its_figures_mean_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "EVALUATION_TEXT", tmp_path / "short.txt")
    (tmp_path / "short.txt").write_text(SPANISH, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    build.main(["random:small", "--no-reference"])
    folder = tmp_path / "models" / "random-small-int8"
    assert json.loads((folder / "quality.json").read_text(encoding="utf-8"))["random_weights"] is True
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "The weights are random, so these figures mean nothing." in card
    assert "`random:small`: seeded noise" in card
    assert "base_model" not in card
    assert "figures mean nothing" in capsys.readouterr().out
    with runtime.load(folder) as model:
        runtime.generate(SPANISH[:20], model=model, max_new_tokens=2)


@pytest.mark.parametrize("size", ["gpt3", "", "../gpt2"])
def test_an_unknown_size_lists_the_known(tmp_path: Path, size: str) -> None:
    with pytest.raises(ValueError, match=r"the sizes are random:distilgpt2, random:gpt2, .*random:gpt2-xl"):
        random_checkpoint.write(size, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
