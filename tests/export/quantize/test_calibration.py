"""What calibration measures and chooses: statistics as transformers has them, texts, and what it refuses."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import build
from export.arguments import parse
from export.checkpoint.checkpoint import open_checkpoint
from export.quantize import texts
from export.quantize.calibration import calibrate
from export.quantize.choice import CANDIDATES
from export.quantize.equalization import OUTPUT
from export.quantize.inputs import FIRST_SHARE, Inputs, LayerInputs
from export.quantize.texts import Amount, cut_text, write_texts
from runtime.graph.kernels import FrequentRows
from tests.support.building import QUICK, error_line, run_here
from tests.support.checkpoints import (
    TINY,
    Weights,
    build_model,
    edit_weights,
    relative_error,
    some_ids,
    write_checkpoint,
)

VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_inner": 96, "activation_function": "relu"},
    {"activation_function": "gelu", "n_head": 2, "layer_norm_epsilon": 1e-3},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "activation_function": "silu"},
    {"scale_attn_weights": False, "tie_word_embeddings": False},
]
PRODUCTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def read_by_transformers(oracle: torch.nn.Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs [n_texts, n_tokens, n_in] of every product, by our names."""
    read: dict[str, np.ndarray] = {}
    for name, module in oracle.named_modules():
        if name.endswith((*PRODUCTS, "lm_head")):
            ours = OUTPUT if name == "lm_head" else name.removeprefix("transformer.")
            module.register_forward_pre_hook(lambda _, x, name=ours: read.update({name: x[0].double().numpy()}))
    with torch.no_grad():
        oracle(torch.from_numpy(ids))
    return read


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_statistics_are_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    oracle = write_checkpoint(tmp_path / "tiny", **config)
    ids = np.array([some_ids(50, seed=seed) for seed in range(3)])
    expected = read_by_transformers(oracle, ids)
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    layers = LayerInputs(checkpoint.config, checkpoint.tensors, ids, tmp_path, moments=True)
    measured: dict[str, Inputs] = {}
    for layer in range(TINY["n_layer"]):
        measured |= layers.run(layer)
    measured[OUTPUT] = layers.output(OUTPUT)
    assert measured.keys() == expected.keys()
    for name, found in measured.items():
        rows = expected[name].reshape(-1, expected[name].shape[-1])
        assert relative_error(found.size, np.sqrt(np.square(rows).mean(0))) < 1e-4, name
        np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-4)
        np.testing.assert_allclose(found.spread, rows.std(0), rtol=1e-2, atol=1e-3)
        if name != OUTPUT:
            assert found.moments is not None
            assert relative_error(found.moments, rows.T @ rows / len(rows)) < 1e-5, name
    assert not (tmp_path / "layer").exists()


def test_the_sample_has_the_beginning_of_every_text(tmp_path: Path) -> None:
    oracle = write_checkpoint(tmp_path / "tiny")
    ids = np.array([some_ids(50, seed=seed) for seed in range(3)])
    expected = read_by_transformers(oracle, ids)
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    found = LayerInputs(checkpoint.config, checkpoint.tensors, ids, tmp_path, moments=False).run(0)
    for name, inputs in found.items():
        firsts = expected[name][:, 0]
        for text in firsts:
            assert np.isclose(inputs.sample, text, atol=1e-4).all(1).any()
        is_first = np.isclose(inputs.sample[:, None], firsts[None], atol=1e-4).all(-1).any(-1)
        assert is_first.sum() == 3
        assert inputs.weights[is_first].sum() == pytest.approx(FIRST_SHARE)
        assert inputs.weights.sum() == pytest.approx(1)
        assert inputs.moments is None


@pytest.mark.parametrize("kernel", ["dense", "block 32", "int4 32"])
def test_every_product_is_equalized_and_its_better_kernels_lose_less(tmp_path: Path, kernel: str) -> None:
    write_checkpoint(tmp_path / "tiny")
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    ids = np.array([some_ids(90, seed=seed) for seed in range(4)])
    found = calibrate(checkpoint.config, checkpoint.tensors, ids, kernel, tmp_path)
    names = {f"h.{layer}.{product}" for layer in range(TINY["n_layer"]) for product in PRODUCTS} | {OUTPUT}
    assert found.equalizations.keys() == found.errors.keys() == found.chosen.keys() == names
    candidates = {candidate.name for candidate in CANDIDATES}
    for name in names:
        assert found.chosen[name] in candidates
        errors = list(found.errors[name].items())
        assert errors[0][0] == (kernel.replace("int4", "frequent") if name == OUTPUT else kernel)
        assert errors[-1][0] == "fp32"
        assert errors[-1][1] < 1e-9
        assert errors[0][1] < (0.05 if "int4" in kernel else 0.001)
        assert all(later < earlier * 1.2 for (_, earlier), (_, later) in itertools.pairwise(errors))
        if name.endswith("mlp.c_proj"):
            assert found.chosen[name] == "none"
    assert (found.rounded is not None) == kernel.startswith("int4")
    if found.rounded is not None:
        assert all(("wte" if name == OUTPUT else name) in found.rounded for name in names)
        packed, _, _ = found.rounded["wte"]
        assert len(packed) == TINY["vocab_size"] - FrequentRows.n_first(TINY["vocab_size"])


def test_only_dense_and_fp32_where_blocks_may_be_slow(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny")
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    ids = np.array([some_ids(90)])
    found = calibrate(checkpoint.config, checkpoint.tensors, ids, "dense", tmp_path, only_dense=True)
    assert {tuple(errors) for errors in found.errors.values()} == {("dense", "fp32")}


def test_texts_fill_the_context_and_are_the_same_however_many_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "tiny")
    folder = build_model(tmp_path / "tiny", "int8")
    written = write_texts(folder, Amount(600, 1024))
    assert written.shape == (7, 96)
    assert (written[:, 0] == TINY["bos_token_id"]).all()
    assert TINY["eos_token_id"] not in written[:, 1:]
    assert (written >= 0).all()
    assert (written < TINY["vocab_size"]).all()
    assert len({tuple(text) for text in written}) == 7
    monkeypatch.setattr(texts, "CACHE_BYTES", 2 * 8 * 3 * 64 * 96)
    np.testing.assert_array_equal(write_texts(folder, Amount(600, 1024)), written)
    assert write_texts(folder, Amount(600, 50)).shape == (12, 50)


def test_without_a_token_that_texts_begin_with_they_begin_with_any(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", bos_token_id=None, eos_token_id=None)
    written = write_texts(build_model(tmp_path / "tiny", "int8"), Amount(900, 1024))
    assert written.shape == (10, 96)
    assert len(set(written[:, 0])) > 1


def test_a_long_text_is_read_from_all_over_and_a_short_one_whole() -> None:
    ids = list(range(10_000))
    assert cut_text(ids[:250], 100, Amount(1000, 100)).tolist() == [ids[:100], ids[100:200]]
    cut = cut_text(ids, 100, Amount(1000, 100))
    assert cut.shape == (10, 100)
    assert (cut[0, 0], cut[-1, -1]) == (0, 9999)
    assert (np.diff(cut, axis=1) == 1).all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_text_of_the_users_is_read(tmp_path: Path, precision: str) -> None:
    write_checkpoint(tmp_path / "tiny")
    (tmp_path / "mine.txt").write_text("The users' own text, ¿qué tal? " * 100, encoding="utf-8")
    target = tmp_path / "model"
    own = ["--calibration-text", str(tmp_path / "mine.txt")]
    build.main([str(tmp_path / "tiny"), *QUICK, "--precision", precision, *own, "--output", str(target)])
    assert json.loads((target / "quality.json").read_text(encoding="utf-8"))["calibrated"] is True
    assert "calibrated on mine.txt" in (target / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"mine.txt is 0 token\(s\) long; 2000 are needed"),
        (b"x" * 1999, r"mine.txt is 1999 token\(s\) long; 2000 are needed"),
        (b"\xff" * 4000, "mine.txt is not UTF-8"),
        (None, "no text at .*mine.txt; --calibration-text names a file"),
    ],
)
def test_a_text_that_is_of_no_use_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    write_checkpoint(tmp_path / "tiny")
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    typed = [str(tmp_path / "tiny"), *QUICK, "--calibration-text", str(tmp_path / "mine.txt")]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build.main([*typed, "--output", str(tmp_path / "model")])
    assert "[2/6]" not in capsys.readouterr().out
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("typed", "less_memory"),
    [
        ("gpt2", "--no-calibration.*--no-reference.*--verify none"),
        ("gpt2 --no-calibration --no-reference --verify none", "^$"),
        ("gpt2 --no-calibration", "^; --no-reference"),
        ("gpt2 --precision int4", "--no-calibration.*--no-reference.*--verify none"),
    ],
)
def test_what_is_advised_is_of_use(typed: str, less_memory: str) -> None:
    assert re.search(less_memory, parse(typed.split()).less_memory)


def test_a_random_model_is_not_calibrated() -> None:
    for precision in ("int8", "int4"):
        for checkpoint, calibrated in (("random:gpt2", False), ("gpt2", True)):
            assert parse([checkpoint, "--precision", precision]).calibrates is calibrated
    assert not parse(["gpt2", "--precision", "fp32"]).calibrates
    assert not parse(["gpt2", "--no-calibration"]).calibrates


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_model_that_writes_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    write_checkpoint(tmp_path / "tiny")

    def damage(weights: Weights) -> None:
        weights["transformer.ln_f.weight"].fill(3e38)
        weights["transformer.wte.weight"] *= 1000

    edit_weights(tmp_path / "tiny", damage)
    target = tmp_path / "model"
    assert run_here(monkeypatch, tmp_path / "tiny", "--precision", precision, *QUICK, "--output", target) == 1
    assert "the weights are damaged" in error_line(capsys.readouterr().err)
    assert not target.exists()


def test_inputs_that_pass_fp32_are_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny")
    for product in ("c_fc", "c_proj"):
        edit_weights(
            tmp_path / "tiny", lambda weights, name=f"transformer.h.0.mlp.{product}.weight": weights[name].fill(1e30)
        )
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    ids = np.array([some_ids(20)])
    layers = LayerInputs(checkpoint.config, checkpoint.tensors, ids, tmp_path, moments=False)
    with pytest.raises(ValueError, match=r"h\.\d\.\S+: .* overflow fp32.*--no-calibration"):
        for layer in range(TINY["n_layer"]):
            layers.run(layer)


@pytest.mark.parametrize("kernel", ["dense", "int4 32"])
def test_channels_that_are_always_zero_or_never_read(tmp_path: Path, kernel: str) -> None:
    write_checkpoint(tmp_path / "tiny", activation_function="relu")

    def kill(weights: Weights) -> None:
        for layer in range(TINY["n_layer"]):
            h = f"transformer.h.{layer}."
            weights[f"{h}ln_1.weight"][:3] = 0
            weights[f"{h}ln_1.bias"][:2] = 0
            weights[f"{h}attn.c_attn.weight"][5] = 0
            weights[f"{h}attn.c_attn.weight"][:, 130] = 0
            weights[f"{h}attn.c_attn.bias"][130] = 0
            weights[f"{h}mlp.c_fc.weight"][:, 7] = 0
            weights[f"{h}mlp.c_fc.bias"][7] = -1
        weights["transformer.ln_f.weight"][4] = 0
        weights["transformer.ln_f.bias"][4] = 0

    edit_weights(tmp_path / "tiny", kill)
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    ids = np.array([some_ids(90, seed=seed) for seed in range(2)])
    found = calibrate(checkpoint.config, checkpoint.tensors, ids, kernel, tmp_path)
    for equalization in found.equalizations.values():
        assert np.isfinite(equalization.scale).all()
        assert (equalization.scale > 0).all()
        assert np.isfinite(equalization.shift).all()
