"""Exactness of the kernels on attention products: the measure itself, and real weights where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import real_attention
from tests.benchmarks.real_attention import KERNELS, Floats, Product, decibels, equalize, markdown, measure, run_product
from tests.conftest import shared_data

N_EMBD = 192  # 12 heads of 16; one of the large channels is among them


@pytest.fixture(scope="module")
def tensors() -> dict[str, Floats]:
    """A layer 3 of noise."""
    generator = np.random.default_rng(0)
    shapes = {
        "ln_1.weight": (N_EMBD,),
        "ln_1.bias": (N_EMBD,),
        "attn.c_attn.weight": (N_EMBD, 3 * N_EMBD),
        "attn.c_attn.bias": (3 * N_EMBD,),
        "attn.c_proj.weight": (N_EMBD, N_EMBD),
    }
    return {f"h.3.{name}": generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def unchanged(kernel: str, weight: Floats, inputs: Floats) -> tuple[Floats, Floats]:
    """No equalization."""
    return np.ones(len(weight), np.float32), np.zeros(len(weight), np.float32)


def test_decibels_are_of_what_differs_between_positions() -> None:
    exact = np.array([[1.0, 5.0], [-1.0, 5.0]])
    constant = np.full((2, 2), 1000.0)
    error = np.float32(0.01) * np.array([[1, 0], [0, 1]])
    assert decibels(exact, exact + error) == pytest.approx(10 * np.log10(0.5 / 0.00005), rel=1e-5)
    assert decibels(exact + constant, exact + constant + error) == pytest.approx(decibels(exact, exact + error))
    assert decibels(exact, exact.astype(np.float32)) == float("inf")


def test_inputs_have_the_large_channel_and_a_first_position_of_its_own(tensors: dict[str, Floats]) -> None:
    inputs = real_attention.product_inputs(tensors, 3, seed=0)
    assert {name: x.shape for name, x in inputs.items()} == dict.fromkeys(("attn.c_attn", "attn.c_proj"), (512, N_EMBD))
    gain, bias = tensors["h.3.ln_1.weight"], tensors["h.3.ln_1.bias"]
    normed = ((inputs["attn.c_attn"] - bias) / gain).reshape(8, 64, N_EMBD)
    typical = np.median(np.abs(normed[:, 1:]))
    assert 5 * typical < np.median(normed[:, 1:, 138]) < 20 * typical
    assert normed[:, 0, 138].min() > 1.5 * np.median(normed[:, 1:, 138])
    assert np.abs(normed[:, 0, :138]).max() < typical  # the first position has little else


def test_averages_lie_between_the_values() -> None:
    values = np.random.default_rng(0).standard_normal((2, 20, N_EMBD)).astype(np.float32)
    averaged = real_attention.average(values, np.random.default_rng(1))
    assert np.allclose(averaged[:, 0], values[:, 0], rtol=1e-5, atol=1e-5)
    for position in range(20):
        low, high = values[:, : position + 1].min(1), values[:, : position + 1].max(1)
        assert (averaged[:, position] >= low - 1e-5).all() and (averaged[:, position] <= high + 1e-5).all()


def test_finer_kernels_are_more_exact(tensors: dict[str, Floats]) -> None:
    for product in real_attention.real_products(tensors).values():
        ratios = measure(product, unchanged)[::2]
        by_kernel = dict(zip(KERNELS, ratios, strict=True))
        assert by_kernel["int4 32"] < by_kernel["dense"] < by_kernel["block 64"] < by_kernel["block 32"]
        assert all(10 < ratio < 70 for ratio in ratios)


@pytest.mark.parametrize("kernel", KERNELS)
def test_equalization_is_undone_by_the_product(kernel: str) -> None:
    """Factors and shifts change nothing but the error; powers of two change not even that of the weights."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((N_EMBD, 64), np.float32)
    inputs = generator.standard_normal((128, N_EMBD), np.float32) + 3
    exact = inputs.astype(np.float64) @ weight
    shifts = inputs.mean(0)

    def centre(kernel: str, weight: Floats, inputs: Floats) -> tuple[Floats, Floats]:
        return np.ones(N_EMBD, np.float32), shifts

    product = Product(weight, inputs, inputs)
    plain = run_product(kernel, product, None)
    assert np.allclose(run_product(kernel, product, unchanged), plain, rtol=1e-5, atol=1e-4)
    centred = run_product(kernel, product, centre)
    assert decibels(exact, centred) > decibels(exact, plain)


def test_outliers_cost_the_dense_kernel_and_factors_bring_it_back() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((N_EMBD, 64), np.float32)
    inputs = generator.standard_normal((128, N_EMBD), np.float32)
    factor = np.ones(N_EMBD, np.float32)
    factor[[3, 50]] = 64
    outlying, divided = inputs * factor, weight / factor[:, None]
    exact = outlying.astype(np.float64) @ divided

    def equalize(kernel: str, weight: Floats, inputs: Floats) -> tuple[Floats, Floats]:
        return factor, np.zeros(N_EMBD, np.float32)

    product = Product(divided, outlying, outlying)
    clean = decibels(exact, run_product("dense", Product(weight, inputs, inputs), None))
    assert decibels(exact, run_product("dense", product, None)) < clean - 20
    assert decibels(exact, run_product("dense", product, equalize)) == pytest.approx(clean, abs=0.5)


def test_demo_is_measured_on_its_own_text() -> None:
    for product in real_attention.demo_products().values():
        assert len(product.inputs) == len(product.calibration) == 512
        assert not np.array_equal(product.inputs, product.calibration)
        assert 25 < measure(product, unchanged)[2 * KERNELS.index("dense")] < 45


def test_table_has_both_stages(monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Floats]) -> None:
    monkeypatch.setattr(real_attention, "demo_products", dict)
    head, _, *rows = markdown(tensors, unchanged).splitlines()
    assert "| dense, before | dense, after | block 64, before |" in head
    for row in rows:
        figures = row.split(" | ")[1:]
        assert [figure.strip(" |") for figure in figures[::2]] == [figure.strip(" |") for figure in figures[1::2]]


def test_real_weights_are_measured() -> None:
    path: Path = shared_data("gpt2_attention") / "gpt2_attention.npz"
    with np.load(path) as file:
        names = [name for name in file if name.startswith("h.3.")]
        tensors = {name: file[name] for name in names}
    products = real_attention.real_products(tensors)
    assert list(products) == ["layer 3, `attn.c_attn`", "layer 3, `attn.c_proj`"]
    for product in products.values():
        before, after = measure(product, equalize)[:2]
        assert 20 < before < 40
        assert after > before + 1
