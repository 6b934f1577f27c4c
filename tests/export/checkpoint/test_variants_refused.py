"""What the graph cannot express, or what no GPT-2 has, is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.checkpoints import Weights, build_model, change_config, edit_weights, write_checkpoint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "mish"}, r"config.json: activation_function is 'mish'; the graph has gelu_new, "),
        ({"activation_function": None}, r"config.json: activation_function is None"),
        ({"n_embd": 60, "n_head": 3}, r"config.json: the head size n_embd / n_head is 20; .* multiples of 8 only"),
        ({"n_head": 5}, r"config.json: n_embd 64 is not a multiple of n_head 5"),
        ({"num_attention_heads": 5}, r"config.json: n_embd 64 is not a multiple of n_head 5"),
        ({"scale_attn_weights": 1}, r"config.json: scale_attn_weights is 1; true or false"),
        ({"layer_norm_epsilon": "1e-5"}, r"config.json: layer_norm_epsilon is '1e-5'"),
        ({"n_inner": 0}, r"config.json: n_inner is 0; a whole number of at least 1"),
        ({"eos_token_id": "256"}, r"config.json: eos_token_id has '256'; a token id or null is expected"),
        ({"eos_token_id": [256, None]}, r"config.json: eos_token_id is \[256, None\]"),
        ({"bos_token_id": True}, r"config.json: bos_token_id has True; a token id or null is expected"),
        ({"vocab_size": 256}, r"tokenizer.json has token id 256 \('<\|endoftext\|>'\), but .* vocab_size 256"),
        ({"tie_word_embeddings": False}, r"no tensor 'lm_head.weight', which config.json asks for"),
        ({"add_cross_attention": True}, r"config.json: add_cross_attention is set"),
        ({"n_layer": 2}, r"tensors that are no part of GPT-2 would be lost: h\.2\."),
        ({"n_layer": 4}, r"no tensor 'h\.3\.\S+', which config.json asks for"),
        (
            {"n_inner": 128},
            r"model.safetensors: transformer\.h\.0\.mlp\.c_fc\.weight is \[64, 256\], but .* \[64, 128\]",
        ),
    ],
)
def test_impossible_configs_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path / "refused")
    change_config(tmp_path / "refused", **changes)
    with pytest.raises(ValueError, match=message):
        build_model(tmp_path / "refused")


def to_int8(weights: Weights) -> None:
    weights["transformer.h.1.mlp.c_fc.weight"] = np.zeros((64, 256), np.int8)


def store_twice(weights: Weights) -> None:
    weights["wpe.weight"] = np.zeros((96, 64), np.float32)


def overflow(weights: Weights) -> None:
    weights["transformer.wpe.weight"] = np.full((96, 64), 1e300)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (to_int8, r"model.safetensors: transformer.h.1.mlp.c_fc.weight is I8; weights must be floating point"),
        (store_twice, r"model.safetensors: (transformer\.)?wpe.weight is stored a second time"),
        (overflow, r"model.safetensors: transformer.wpe.weight holds NaN or infinity"),
    ],
)
def test_impossible_weights_are_refused_by_name(
    tmp_path: Path, edit: Callable[[Weights], object], message: str
) -> None:
    write_checkpoint(tmp_path / "refused")
    edit_weights(tmp_path / "refused", edit)
    with pytest.raises(ValueError, match=message):
        build_model(tmp_path / "refused")


@pytest.mark.parametrize(
    ("config", "block_size", "message"),
    [
        ({"n_embd": 96, "n_head": 2}, 64, r"blocks of 64 do not divide the widths \[96, 384\]; --block-size 32 does"),
        ({"n_inner": 320}, 128, r"blocks of 128 do not divide the widths \[64, 320\]; --block-size 32 or 64 does"),
        ({"n_embd": 80, "n_head": 2}, 32, r"blocks of 32 do not divide .*; --kernel dense or --precision fp32 does"),
    ],
)
def test_widths_that_blocks_do_not_divide(
    tmp_path: Path, config: dict[str, Any], block_size: int, message: str
) -> None:
    write_checkpoint(tmp_path / "width", **config)
    with pytest.raises(ValueError, match=message):
        build_model(tmp_path / "width", "int8", block_size)
