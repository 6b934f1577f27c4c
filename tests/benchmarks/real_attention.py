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
has texts of its own.

python -m tests.benchmarks.real_attention --output docs/real_attention.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from export.onnx_file import OnnxFile
from export.quantize.dense import DenseInt8
from export.quantize.int4 import Int4
from export.quantize.precision import Int8, Linear, Precision
from tests.benchmarks.statistic import table
from tests.conftest import SHARED_DATA

DATA = SHARED_DATA / "gpt2_attention" / "gpt2_attention.npz"
LARGE_CHANNELS = (138, 378, 447)
LARGE, FIRST = 8.0, 100.0  # times the typical channel's deviation
N_HEAD, N_TEXTS, N_POSITIONS = 12, 8, 64
N_ATTENDED = 16  # positions that a head averages over, at most
EPSILON = 1e-5
Floats = NDArray[np.float32]
Tensors = Mapping[str, NDArray[np.generic]]
KERNELS = ("dense", "block 64", "block 32", "int4")

# (weight [n_in, n_out], inputs [n, n_in]) -> factors [n_in], shifts [n_in]: the kernel then multiplies
# (inputs - shifts) / factors with weight * factors, and the bias takes up shifts times weight
Equalize = Callable[[Floats, Floats], tuple[Floats, Floats]]


def equalization() -> Equalize | None:
    """How the build equalizes a product; None while it does not. The one place to call export.quantize from."""
    return None


def main() -> None:
    """Print the table; write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="NPZ", help=f"(default: {DATA})")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table as Markdown")
    given = parser.parse_args()
    if not given.data.is_file():
        parser.error(f"there is no file {given.data}; --data names a gpt2_attention.npz")
    with np.load(given.data) as file:
        text = markdown(dict(file), equalization())
    print(text)
    if given.output:
        given.output.write_text(f"{text}\n", encoding="utf-8")


def markdown(tensors: Tensors, equalize: Equalize | None) -> str:
    """A row a product; before and after equalization, where there is one."""
    stages: dict[str, Equalize | None] = {"before": None} | ({"after": equalize} if equalize else {})
    head = ["signal to quantization error, dB"]
    head += [kernel if len(stages) == 1 else f"{kernel}, {stage}" for kernel in KERNELS for stage in stages]
    rows = []
    for layer in layers(tensors):
        for name, ratios in measure(tensors, layer, stages).items():
            print(f"layer {layer}: {name}", file=sys.stderr, flush=True)
            rows.append([f"layer {layer}, `{name}`", *(f"{ratio:.1f}" for ratio in ratios)])
    return table(head, rows)


def layers(tensors: Tensors) -> list[int]:
    """Those whose matrices are there."""
    return sorted(int(name.split(".")[1]) for name in tensors if name.endswith("attn.c_attn.weight"))


def measure(tensors: Tensors, layer: int, stages: Mapping[str, Equalize | None]) -> dict[str, list[float]]:
    """The ratios of each product of a layer: for each kernel, one a stage."""
    calibration, texts = (product_inputs(tensors, layer, seed) for seed in (0, 1))
    ratios: dict[str, list[float]] = {}
    for name, inputs in texts.items():
        weight = np.asarray(tensors[f"h.{layer}.{name}.weight"], np.float32)
        products = [
            run_product(kernel, weight, inputs, calibration[name], equalize)
            for kernel in KERNELS
            for equalize in stages.values()
        ]
        exact = inputs.astype(np.float64) @ weight
        ratios[name] = [decibels(exact, product) for product in products]
    return ratios


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


def run_product(kernel: str, weight: Floats, inputs: Floats, calibration: Floats, equalize: Equalize | None) -> Floats:
    """inputs [n, n_in] times weight [n_in, n_out], by a kernel, [n, n_out]; equalized where that is asked for."""
    if equalize is None:
        return quantized_product(kernel, weight, inputs, calibration)
    factors, shifts = equalize(weight, calibration)
    parts = (((x - shifts) / factors).astype(np.float32) for x in (inputs, calibration))
    product = quantized_product(kernel, weight * factors[:, None], *parts)
    constant: Floats = (shifts.astype(np.float64) @ weight).astype(np.float32)
    return product + constant


def quantized_product(kernel: str, weight: Floats, inputs: Floats, calibration: Floats) -> Floats:
    """The product as onnxruntime computes it, by the build's own nodes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:  # Windows deletes no mapped file
        with OnnxFile(Path(work)) as file:
            linear = Linear(weight, np.zeros(weight.shape[1], np.float32))
            product, bias = precision_of(kernel, calibration).linear(file, "x", "product", linear)
            file.node("Add", [product, bias], ["y"]) if bias else file.node("Identity", [product], ["y"])
            shapes = {"x": weight.shape[0], "y": weight.shape[1]}
            values = [(name, TensorProto.FLOAT, ["batch", "sequence", n]) for name, n in shapes.items()]
            file.save(values[:1], values[1:], {})
        session = onnxruntime.InferenceSession(Path(work) / "model.onnx", providers=["CPUExecutionProvider"])
        found: Floats = session.run(["y"], {"x": inputs[None]})[0][0]
        del session
    return found


class _Moments:
    """The second moments of one product's inputs, [n_in, n_in]."""

    def __init__(self, inputs: Floats) -> None:
        self.inputs = inputs.astype(np.float64)

    def pop(self, name: str) -> NDArray[np.float64]:
        return self.inputs.T @ self.inputs / len(self.inputs)


def precision_of(kernel: str, calibration: Floats) -> Precision:
    """The build's own precision; int4 in blocks of 32, calibrated."""
    if kernel == "dense":
        return DenseInt8()
    return Int4(32, _Moments(calibration)) if kernel == "int4" else Int8(int(kernel.removeprefix("block ")))


def decibels(exact: NDArray[np.float64], product: Floats) -> float:
    """The power of the signal over that of the error, as 10 times its decimal logarithm.

    The signal is what differs from position to position: a constant part tells a model nothing.
    """
    error = np.square(exact - product).mean()
    return float(10 * np.log10(exact.var(axis=0).mean() / error)) if error else float("inf")


if __name__ == "__main__":
    main()
