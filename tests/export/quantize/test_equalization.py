"""Equalized tensors are the same function in fp32, on every variant of the family, whatever the factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from export.folder.folder import write_tokenizer_and_config
from export.graph import graph
from export.quantize.equalization import (
    OUTPUT,
    Equalization,
    EqualizedTensors,
    can_scale,
    can_shift,
    from_weights,
    identity,
    scales,
)
from export.quantize.precision import Float32
from tests.export.quantize.test_calibration import PRODUCTS, VARIANTS
from tests.support.checkpoints import TINY, Floats, difference, folder_logits, some_ids, torch_logits, write_checkpoint

CLOSE = 1e-4
ACTIVATIONS = ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "quick_gelu", "relu", "silu", "swish", "tanh"]
MORE: list[dict[str, Any]] = [{"activation_function": name} for name in ACTIVATIONS]


def any_factors(checkpoint: Checkpoint, seed: int) -> dict[str, Equalization]:
    """Of every product that can have them: scales over four orders of magnitude, shifts as large as the inputs."""
    noise, config = np.random.default_rng(seed), checkpoint.config
    found = {}
    for name in [*(f"h.{layer}.{product}" for layer in range(config.n_layer) for product in PRODUCTS), OUTPUT]:
        n_in = config.inner_size if name.endswith("mlp.c_proj") else config.n_embd
        if can_scale(name, config.activation_function):
            shift = noise.standard_normal(n_in) * can_shift(name)
            found[name] = Equalization(np.exp(noise.uniform(-5, 5, n_in)).astype(np.float32), shift.astype(np.float32))
    return found


def equalized_logits(checkpoint: Checkpoint, found: dict[str, Equalization], folder: Path, ids: list[int]) -> Floats:
    folder.mkdir()
    tensors = EqualizedTensors(checkpoint.config, checkpoint.tensors, found)
    graph.build(checkpoint.config, tensors, Float32(), folder)
    write_tokenizer_and_config(checkpoint, folder)
    return folder_logits(folder, ids)


@pytest.mark.parametrize("config", [*VARIANTS, *MORE], ids=str)
def test_the_function_is_unchanged(tmp_path: Path, config: dict[str, Any]) -> None:
    oracle = write_checkpoint(tmp_path / "tiny", **config)
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    ids = some_ids(TINY["n_positions"])
    expected = torch_logits(oracle, ids)
    for name, found in (
        ("any", any_factors(checkpoint, 0)),
        ("guess", from_weights(checkpoint.config, checkpoint.tensors)),
    ):
        assert difference(equalized_logits(checkpoint, found, tmp_path / name, ids), expected) < CLOSE


def test_every_kind_of_product_is_changed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", activation_function="relu")
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    found = any_factors(checkpoint, 1)
    assert len(found) == 4 * TINY["n_layer"] + 1
    tensors = EqualizedTensors(checkpoint.config, checkpoint.tensors, found)
    for product in PRODUCTS:
        name = f"h.1.{product}.weight"
        assert not np.allclose(tensors[name], checkpoint.tensors[name])
    assert tensors.embedding_factor is not None
    np.testing.assert_allclose(
        tensors["wte.weight"] * tensors.embedding_factor, checkpoint.tensors["wte.weight"], rtol=1e-6
    )
    assert EqualizedTensors(checkpoint.config, checkpoint.tensors, {}).embedding_factor is None


def test_an_untied_embedding_is_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", tie_word_embeddings=False)
    checkpoint = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    tensors = EqualizedTensors(checkpoint.config, checkpoint.tensors, any_factors(checkpoint, 2))
    np.testing.assert_array_equal(tensors["wte.weight"], checkpoint.tensors["wte.weight"])
    assert tensors.embedding_factor is None
    assert not np.allclose(tensors["lm_head.weight"], checkpoint.tensors["lm_head.weight"])


@given(st.integers(0, 2**32), st.integers(2, 40))
@settings(deadline=None, max_examples=50)
def test_moments_are_those_of_the_equalized_inputs(seed: int, n_in: int) -> None:
    noise = np.random.default_rng(seed)
    x = noise.standard_normal((100, n_in)) + noise.standard_normal(n_in)
    found = Equalization(
        np.exp(noise.uniform(-2, 2, n_in)).astype(np.float32), noise.standard_normal(n_in).astype(np.float32)
    )
    equalized = (x - found.shift) / found.scale
    moments = found.moments(x.T @ x / len(x), x.mean(0))
    np.testing.assert_allclose(moments, equalized.T @ equalized / len(x), rtol=1e-6, atol=1e-6 * moments.max())


def test_scales_stay_within_fp32() -> None:
    """Denormal sizes beside large ones."""
    sizes = np.array([0, 1e-45, 1e-45, 1e-45, 1e6], np.float32)
    for activations, weights in ((sizes, sizes[::-1]), (np.full(5, 1e-45, np.float32), sizes)):
        for strength in (0.5, 1.0):
            found = scales(activations, weights, strength)
            assert np.isfinite(found).all()
            assert (found > 0).all()


positive = st.lists(st.floats(0, 1e6, width=32), min_size=2, max_size=30)


@given(positive, st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.integers(0, 2**32))
@example([0.0, float(np.finfo(np.float32).smallest_subnormal)], 0.25, 0)
@settings(deadline=None)
def test_scales_are_finite_positive_and_centred(sizes: list[float], strength: float, seed: int) -> None:
    activations = np.array(sizes, np.float32)
    weights = np.random.default_rng(seed).exponential(size=len(sizes)).astype(np.float32)
    found = scales(activations, weights, strength)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert np.log(found.astype(np.float64)).mean() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e3])
def test_an_outlier_channel_is_undone(factor: float) -> None:
    noise = np.random.default_rng(0)
    activations, weights = (np.exp(noise.standard_normal(64)).astype(np.float32) for _ in range(2))
    before = scales(activations, weights, 0.5)
    activations[3] *= factor
    weights[3] /= factor
    after = scales(activations, weights, 0.5)
    ratio = after / before
    assert ratio[3] / ratio[0] == pytest.approx(factor, rel=1e-3)


def test_the_identity_changes_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_array_equal(identity(8).apply(x), x)
