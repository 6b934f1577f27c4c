"""How exact each kernel is on real weights of GPT-2: the attention products of four layers.

`gpt2_attention.npz` holds the LayerNorm parameters of OpenAI's gpt2, and c_attn and attn.c_proj of the layers 0, 3, 7
and 11. The table has the ratio of signal to quantization error, in decibels, of each product on inputs that are
synthetic in one part and real in the others:

- the residual is Gaussian, with channels 138, 378 and 447 LARGE times the typical one, and FIRST times at the first
  position: the real weights show that these channels are large, and not how large
- the input of c_attn is this residual, normalized, times the real gain, plus the real bias
- the input of attn.c_proj is the real values of that input, averaged over positions: a head attends to some of those
  before, and to the first one with half its weight

The signal is what differs from position to position, since a constant part of a product tells a model nothing. Each
product is computed by onnxruntime with the very nodes that the build makes. Calibration, of int4 and of equalization,
has texts of its own. The demo's middle layer, which has no outliers, stands below for comparison.

python -m tests.benchmarks.real_attention --output docs/real_attention.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.quantize import trial
from export.quantize.choice import choose_product
from export.quantize.equalization import root_mean_square
from export.quantize.inputs import FIRST_SHARE, Inputs
from export.quantize.int4 import quantize_int4
from export.quantize.kernels import make_kernel
from export.quantize.precision import Floats, Linear
from tests.benchmarks.statistic import table
from tests.conftest import DEMO, SHARED_DATA

DATA = SHARED_DATA / "gpt2_attention" / "gpt2_attention.npz"
LARGE_CHANNELS = (138, 378, 447)
LARGE, FIRST = 8.0, 100.0  # times the typical channel's deviation
N_HEAD, N_TEXTS, N_POSITIONS = 12, 8, 64
N_ATTENDED = 16  # positions that a head averages over, at most
EPSILON = 1e-5
Tensors = Mapping[str, NDArray[np.generic]]
PRODUCTS = ("attn.c_attn", "attn.c_proj")
KERNELS = ("dense", "block 64", "block 32", "int4 32")
STAGES = ("before", "after")

# (kernel, weight [n_in, n_out], inputs [n, n_in]) -> factors [n_in], shifts [n_in]: the kernel then multiplies
# (inputs - shifts) / factors with weight * factors, and the bias takes up shifts times weight
Equalize = Callable[[str, Floats, Floats], tuple[Floats, Floats]]


class Product(NamedTuple):
    """What is measured: a weight [n_in, n_out], the inputs [n, n_in] that it meets, and others for calibration."""

    weight: Floats
    inputs: Floats
    calibration: Floats


def equalize(kernel: str, weight: Floats, inputs: Floats) -> tuple[Floats, Floats]:
    """What the build chooses for a product and a kernel, from inputs of N_POSITIONS a text."""
    choice = choose_product("h.0.attn.c_attn", weight, statistics(inputs), [kernel])
    return choice.equalization.scale, choice.equalization.shift


def statistics(inputs: Floats) -> Inputs:
    """What the build measures of a product's inputs; all of them are its sample."""
    is_first = np.arange(len(inputs)) % N_POSITIONS == 0
    share = {True: FIRST_SHARE / is_first.sum(), False: (1 - FIRST_SHARE) / (~is_first).sum()}
    return Inputs(
        mean=inputs.mean(0, dtype=np.float64).astype(np.float32),
        size=root_mean_square(inputs, 0),
        lowest=inputs.min(0),
        highest=inputs.max(0),
        sample=inputs,
        weights=np.where(is_first, share[True], share[False]),
        moments=None,
    )


def main() -> None:
    """Print the table; write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="NPZ", help=f"(default: {DATA})")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table as Markdown")
    given = parser.parse_args()
    if not given.data.is_file():
        parser.error(f"there is no file {given.data}; --data names a gpt2_attention.npz")
    with np.load(given.data) as file:
        text = markdown(dict(file), equalize)
    print(text)
    if given.output:
        given.output.write_text(f"{text}\n", encoding="utf-8")


def markdown(tensors: Tensors, equalize: Equalize) -> str:
    """A row a product, the demo's for comparison; before and after equalization."""
    head = ["signal to quantization error, dB", *(f"{kernel}, {stage}" for kernel in KERNELS for stage in STAGES)]
    rows = []
    for name, product in {**real_products(tensors), **demo_products()}.items():
        print(name, file=sys.stderr, flush=True)
        rows.append([name, *(f"{ratio:.1f}" for ratio in measure(product, equalize))])
    return table(head, rows)


def real_products(tensors: Tensors) -> dict[str, Product]:
    """The attention products of every layer whose matrices are there."""
    suffix = ".attn.c_attn.weight"
    products = {}
    for layer in sorted(int(name.split(".")[1]) for name in tensors if name.endswith(suffix)):
        calibration, inputs = (product_inputs(tensors, layer, seed) for seed in (0, 1))
        for name in PRODUCTS:
            weight = np.asarray(tensors[f"h.{layer}.{name}.weight"], np.float32)
            products[f"layer {layer}, `{name}`"] = Product(weight, inputs[name], calibration[name])
    return products


def demo_products() -> dict[str, Product]:
    """The same of the demo's middle layer, which has no outliers, on its own text."""
    import torch
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(DEMO, dtype=torch.float32).eval()
    attention = model.transformer.h[model.config.n_layer // 2].attn
    read: dict[str, list[Floats]] = {name: [] for name in PRODUCTS}
    modules = {"attn.c_attn": attention.c_attn, "attn.c_proj": attention.c_proj}
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda _, given, name=name: read[name].append(given[0].flatten(0, 1).numpy()))
    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode((DEMO / "evaluation.txt").read_text("utf-8")).ids
    n = N_TEXTS * N_POSITIONS
    with torch.inference_mode():
        for begin in (0, n):  # calibration first
            model(torch.tensor(ids[begin : begin + n]).view(N_TEXTS, N_POSITIONS))
    weights = {name: module.weight.detach().numpy() for name, module in modules.items()}
    return {f"the demo, `{name}`": Product(weights[name], read[name][1], read[name][0]) for name in PRODUCTS}


def measure(product: Product, equalize: Equalize) -> list[float]:
    """The ratios of a product: for each kernel, one before and one after equalization."""
    exact = product.inputs.astype(np.float64) @ product.weight
    return [decibels(exact, run_product(kernel, product, how)) for kernel in KERNELS for how in (None, equalize)]


def product_inputs(tensors: Tensors, layer: int, seed: int) -> dict[str, Floats]:
    """What the attention products of a layer read on N_TEXTS texts, [n, n_in] each."""
    generator = np.random.default_rng([seed, layer])
    gain, bias = (np.asarray(tensors[f"h.{layer}.ln_1.{part}"], np.float32) for part in ("weight", "bias"))
    normed = layer_norm(residuals(len(gain), generator)) * gain + bias  # [n_texts, n_positions, n_embd]
    weight, constant = (np.asarray(tensors[f"h.{layer}.attn.c_attn.{part}"], np.float32) for part in ("weight", "bias"))
    values = normed @ weight[:, -len(gain) :] + constant[-len(gain) :]
    inputs = {"attn.c_attn": normed, "attn.c_proj": average(values, generator)}
    return {name: np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.float32) for name, x in inputs.items()}


def residuals(n_embd: int, generator: np.random.Generator) -> Floats:
    """[N_TEXTS, N_POSITIONS, n_embd]: a large channel has a sign of its own at all positions."""
    residual = generator.standard_normal((N_TEXTS, N_POSITIONS, n_embd), np.float32)
    for index, channel in enumerate(c for c in LARGE_CHANNELS if c < n_embd):
        sign = -1 if index % 2 else 1
        residual[..., channel] += sign * LARGE
        residual[:, 0, channel] = sign * FIRST
    return residual


def layer_norm(x: Floats) -> Floats:
    """Without gain and bias."""
    centred = x - x.mean(-1, keepdims=True)
    normed: Floats = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPSILON)
    return normed


def average(values: Floats, generator: np.random.Generator) -> Floats:
    """Each head's values averaged over positions up to its own: half the first one, half some others."""
    n_texts, n_positions, n_embd = values.shape
    heads = values.reshape(n_texts, n_positions, N_HEAD, -1)
    averaged = np.empty_like(heads)
    for position in range(n_positions):
        attended = generator.integers(0, position + 1, min(position + 1, N_ATTENDED))
        shares = generator.dirichlet(np.ones(len(attended)), (n_texts, N_HEAD)).astype(np.float32)
        others = np.einsum("tha,tahd->thd", shares, heads[:, attended])
        averaged[:, position] = (heads[:, 0] + others) / 2
    return averaged.reshape(n_texts, n_positions, n_embd)


def run_product(kernel: str, product: Product, equalize: Equalize | None) -> Floats:
    """Inputs times weight by a kernel, [n, n_out]; equalized where that is asked for."""
    if equalize is None:
        return quantized_product(kernel, product)
    factors, shifts = equalize(kernel, product.weight, product.calibration)
    equalized = Product(
        product.weight * factors[:, None],
        (product.inputs - shifts) / factors,
        (product.calibration - shifts) / factors,
    )
    constant: Floats = (shifts.astype(np.float64) @ product.weight).astype(np.float32)
    return quantized_product(kernel, equalized) + constant


def quantized_product(kernel: str, product: Product) -> Floats:
    """The product as onnxruntime computes it, by the build's own nodes; int4 is calibrated."""
    rounded = None
    if kernel.startswith("int4"):
        x = product.calibration.astype(np.float64)
        size = int(kernel.removeprefix("int4 "))
        rounded = {"product": quantize_int4(product.weight.T, size, x.T @ x / len(x))}
    linear = Linear(product.weight, np.zeros(product.weight.shape[1], np.float32))
    return trial.run_product(make_kernel(kernel, rounded), product.inputs, linear)


def decibels(exact: NDArray[np.float64], product: Floats) -> float:
    """The power of the signal over that of the error, as 10 times its decimal logarithm.

    The signal is what differs from position to position: a constant part tells a model nothing.
    """
    error = np.square(exact - product).mean()
    return float(10 * np.log10(exact.var(axis=0).mean() / error)) if error else float("inf")


if __name__ == "__main__":
    main()
