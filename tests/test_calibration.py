"""What calibration measures: the inputs of every product as transformers has them, over text that the model writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.arguments import parse
from export.checkpoint import open_checkpoint
from export.quantize import calibration
from export.quantize.calibration import Calibration, write_text
from tests.building import QUICK, error_line, run_here
from tests.checkpoints import TINY, Weights, build_model, edit_weights, relative_error, some_ids, write_checkpoint

VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_inner": 96, "activation_function": "relu"},
    {"activation_function": "gelu", "n_head": 2, "layer_norm_epsilon": 1e-3},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "activation_function": "silu"},
    {"scale_attn_weights": False, "tie_word_embeddings": False},
]
PRODUCTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_moments_are_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    oracle = write_checkpoint(tmp_path / "tiny", **config)
    texts = np.array([some_ids(50, seed=seed) for seed in range(3)])
    read: dict[str, torch.Tensor] = {}
    for name, module in oracle.transformer.named_modules():
        if name.endswith(PRODUCTS):
            module.register_forward_pre_hook(
                lambda _, x, name=name: read.update({name: x[0].reshape(-1, x[0].shape[-1])})
            )
    with torch.no_grad():
        oracle(torch.from_numpy(texts))
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    measured = Calibration(checkpoint.config, checkpoint.tensors, texts, tmp_path)
    assert len(read) == 4 * TINY["n_layer"]
    with pytest.raises(KeyError):
        measured.pop("h.1.attn.c_attn")  # layers come in order
    for name in (f"h.{layer}.{product}" for layer in range(TINY["n_layer"]) for product in PRODUCTS):
        expected = (read[name].T @ read[name] / len(read[name])).double().numpy()
        assert relative_error(measured.pop(name), expected) < 1e-5, name
    with pytest.raises(KeyError):
        measured.pop("h.0.attn.c_attn")
    assert not (tmp_path / "layer").exists()


def test_texts_fill_the_context_and_are_the_same_however_many_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "tiny")
    folder = build_model(tmp_path / "tiny", "int4")
    monkeypatch.setattr(calibration, "N_TOKENS", 600)
    texts = write_text(folder)
    assert texts.shape == (7, 96)
    assert (texts[:, 0] == TINY["bos_token_id"]).all()
    assert TINY["eos_token_id"] not in texts[:, 1:]
    assert (texts >= 0).all()
    assert (texts < TINY["vocab_size"]).all()
    assert len({tuple(text) for text in texts}) == 7
    monkeypatch.setattr(calibration, "CACHE_BYTES", 2 * 8 * 3 * 64 * 96)
    np.testing.assert_array_equal(write_text(folder), texts)


def test_without_a_token_that_texts_begin_with_they_begin_with_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "tiny", bos_token_id=None, eos_token_id=None)
    monkeypatch.setattr(calibration, "N_TOKENS", 900)
    texts = write_text(build_model(tmp_path / "tiny", "int4"))
    assert texts.shape == (10, 96)
    assert len(set(texts[:, 0])) > 1


@pytest.mark.parametrize(
    ("typed", "less_memory", "less_loss"),
    [
        ("gpt2", "--no-reference.*--verify none", "--kernel block"),
        ("gpt2 --block-size 64 --no-reference --verify none", "^$", "--block-size 32"),
        ("gpt2 --block-size 32", "--no-reference", "--precision fp32"),
        ("gpt2 --precision int4", "--no-calibration.*--no-reference.*--verify none", "--precision int8"),
        ("gpt2 --precision int4 --block-size 64", "--no-calibration", "--block-size 32"),
        ("gpt2 --precision int4 --no-calibration", "^; --no-reference", "without --no-calibration"),
    ],
)
def test_what_is_advised_is_of_use(typed: str, less_memory: str, less_loss: str) -> None:
    options = parse(typed.split()).attempts([768])[0]
    assert re.search(less_memory, options.less_memory)
    assert less_loss in options.less_loss


def test_a_random_model_is_not_calibrated() -> None:
    for checkpoint, calibrated in (("random:gpt2", False), ("gpt2", True)):
        assert parse([checkpoint, "--precision", "int4"]).calibrates is calibrated
    assert not parse(["gpt2"]).calibrates


def test_a_model_that_writes_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "tiny")

    def damage(weights: Weights) -> None:
        weights["transformer.ln_f.weight"].fill(3e38)
        weights["transformer.wte.weight"] *= 1000

    edit_weights(tmp_path / "tiny", damage)
    target = tmp_path / "model"
    assert run_here(monkeypatch, tmp_path / "tiny", "--precision", "int4", *QUICK, "--output", target) == 1
    assert "logits are not numbers: its weights are damaged" in error_line(capsys.readouterr().err)
    assert not target.exists()


def test_inputs_that_pass_fp32_are_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny")
    for product in ("c_fc", "c_proj"):
        edit_weights(
            tmp_path / "tiny", lambda weights, name=f"transformer.h.0.mlp.{product}.weight": weights[name].fill(1e30)
        )
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    measured = Calibration(checkpoint.config, checkpoint.tensors, np.array([some_ids(20)]), tmp_path)
    for product in PRODUCTS:
        measured.pop(f"h.0.{product}")
    with pytest.raises(ValueError, match=r"h\.1\.attn\.c_attn: .* passes fp32.*--no-calibration"):
        measured.pop("h.1.attn.c_attn")
