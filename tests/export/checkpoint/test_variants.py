"""Every kind of GPT-2 that `GPT2Config` describes: the same logits as transformers, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from export.checkpoint.config import Config
from runtime.graph import gpt2
from runtime.graph.gpt2 import ACTIVATIONS
from runtime.model.model import Model
from tests.support.building import byte_tokenizer
from tests.support.checkpoints import (
    CLOSE,
    TINY,
    Weights,
    build_model,
    change_config,
    difference,
    edit_weights,
    folder_logits,
    open_checkpoint,
    randomize,
    relative_error,
    some_ids,
    torch_logits,
    write_checkpoint,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "one layer, one head": {"n_layer": 1, "n_head": 1},
    "vocabulary of the tokenizer": {"vocab_size": 257},
    "odd vocabulary beyond the tokenizer": {"vocab_size": 1003},
    "n_inner narrower": {"n_inner": 32},
    "n_inner wider": {"n_inner": 352},
    "no attention scale": {"scale_attn_weights": False},
    "attention scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "scaled by layer alone": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    "reordered attention": {"reorder_and_upcast_attn": True},
    "reordered and scaled": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "untied": {"tie_word_embeddings": False},
    "wide epsilon": {"layer_norm_epsilon": 1e-2},
    **{f"head size {size}": {"n_head": 2, "n_embd": 2 * size} for size in (16, 32, 64, 80, 96, 128)},
    "head size 8": {"n_head": 8},
    "head size 40": {"n_head": 3, "n_embd": 120},
    **{f"activation {name}": {"activation_function": name} for name in ACTIVATIONS},
}


def assert_same_logits(checkpoint: Path, oracle: GPT2LMHeadModel, **options: Any) -> None:
    ids = some_ids(64, oracle.config.vocab_size)
    assert difference(folder_logits(build_model(checkpoint, **options), ids), torch_logits(oracle, ids)) < CLOSE


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp32_logits_are_transformers(tmp_path: Path, variant: str) -> None:
    oracle = write_checkpoint(tmp_path / "variant", **VARIANTS[variant])
    assert_same_logits(tmp_path / "variant", oracle)


@pytest.mark.parametrize(
    "variant",
    [
        "odd vocabulary beyond the tokenizer",
        "n_inner wider",
        "untied",
        "reordered and scaled",
        "head size 80",
        "head size 8",
    ],
)
def test_int8_logits_are_near_transformers(tmp_path: Path, variant: str) -> None:
    oracle = write_checkpoint(tmp_path / "variant", **VARIANTS[variant])
    ids = some_ids(64, oracle.config.vocab_size)
    model = build_model(tmp_path / "variant", "int8", 32)
    assert relative_error(folder_logits(model, ids), torch_logits(oracle, ids)) < 0.03


def test_context_of_2048_to_its_end(tmp_path: Path) -> None:
    oracle, ids = write_checkpoint(tmp_path / "long", n_positions=2048, n_layer=1), some_ids(2048)
    with Model(build_model(tmp_path / "long")) as model:
        assert model.config.n_positions == 2048
        cache = model.new_cache(2048)
        logits = np.concatenate([cache.extend(ids[:2000], keep=2000), cache.extend(ids[2000:], keep=48)])
    assert difference(logits, torch_logits(oracle, ids)) < CLOSE


def test_every_activation_matters(tmp_path: Path) -> None:
    """The tolerance tells the activations apart, but for those that are one function."""
    logits = {}
    for name in ("gelu_new", "gelu", "quick_gelu", "silu", "relu", "tanh"):
        config = GPT2Config(**TINY, activation_function=name)
        model = GPT2LMHeadModel(config)
        randomize(model)
        logits[name] = torch_logits(model.eval(), some_ids(64))
    pairs = [(a, b) for a in logits for b in logits if a != b]
    assert min(difference(logits[a], logits[b]) for a, b in pairs) > 2 * CLOSE
    assert set(gpt2.ACTIVATIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    oracle = write_checkpoint(tmp_path / "stored", dtype=dtype)
    assert_same_logits(tmp_path / "stored", oracle)


def test_shards_under_an_index(tmp_path: Path) -> None:
    oracle = write_checkpoint(tmp_path / "sharded", max_shard_size="200KB")
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    assert_same_logits(tmp_path / "sharded", oracle)


def write_without_prefix(folder: Path) -> GPT2LMHeadModel:
    oracle = GPT2LMHeadModel(GPT2Config(**TINY, attn_implementation="eager")).eval()
    randomize(oracle)
    oracle.transformer.save_pretrained(folder)
    byte_tokenizer(257).save(str(folder / "tokenizer.json"))
    return oracle


def test_names_without_the_prefix(tmp_path: Path) -> None:
    oracle = write_without_prefix(tmp_path / "plain")
    assert "wte.weight" in load_file(tmp_path / "plain" / "model.safetensors")
    assert_same_logits(tmp_path / "plain", oracle)


def add_old_buffers(weights: Weights) -> None:
    for layer in range(TINY["n_layer"]):
        weights[f"transformer.h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 96, 96), np.uint8))
        weights[f"transformer.h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)


def add_output_layer(weights: Weights) -> None:
    weights["lm_head.weight"] = np.zeros_like(weights["transformer.wte.weight"])


def write_stray(folder: Path, edit: Callable[[Weights], object]) -> None:
    write_checkpoint(folder)
    edit_weights(folder, edit)


@pytest.mark.parametrize("edit", [add_old_buffers, add_output_layer])
def test_stray_tensors_are_left_out_as_transformers_does(tmp_path: Path, edit: Callable[[Weights], object]) -> None:
    write_stray(tmp_path / "stray", edit)
    assert_same_logits(tmp_path / "stray", open_checkpoint(tmp_path / "stray"))


def test_missing_keys_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "old", n_layer=12, n_head=12, n_embd=96, n_positions=1024)
    kept = ("model_type", "n_embd", "vocab_size", "initializer_range")
    written = json.loads((tmp_path / "old" / "config.json").read_text(encoding="utf-8"))
    change_config(tmp_path / "old", remove=[key for key in written if key not in kept], n_ctx=1024)
    assert_same_logits(tmp_path / "old", open_checkpoint(tmp_path / "old"))


def test_general_names_mean_gpt2s_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "renamed", n_head=2, n_embd=96)
    renamed = {"num_attention_heads": 2, "hidden_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 96}
    change_config(tmp_path / "renamed", remove=("n_head", "n_embd", "n_layer", "n_positions"), **renamed)
    assert_same_logits(tmp_path / "renamed", open_checkpoint(tmp_path / "renamed"))


@pytest.mark.parametrize(
    ("config", "generation", "bos", "eos"),
    [
        ({}, {"bos_token_id": 50256, "eos_token_id": 50256}, 50256, {50256}),  # outside the vocabulary
        ({"bos_token_id": 50256, "eos_token_id": 50256}, None, 50256, {50256}),
        ({"eos_token_id": [256, 10]}, None, 256, {256, 10}),
        ({}, {"bos_token_id": 256, "eos_token_id": [256, 11]}, 256, {256, 11}),
        ({"bos_token_id": None, "eos_token_id": None}, None, None, set()),
        ({}, {"bos_token_id": None, "eos_token_id": None}, None, set()),
    ],
)
def test_ends_of_text(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, bos: int | None, eos: set[int]
) -> None:
    folder = tmp_path / "ends"
    write_checkpoint(folder)
    change_config(folder, **config)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    with Model(build_model(folder)) as model:
        assert (model.config.bos_token_id, set(model.config.eos_token_ids)) == (bos, eos)


def test_defaults_are_those_of_transformers() -> None:
    ours, theirs = Config(), GPT2Config()
    assert ours.head is None
    keys = vars(ours).keys() - {"head"}
    assert {key: getattr(theirs, key) for key in keys} == {key: getattr(ours, key) for key in keys}
