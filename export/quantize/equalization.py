"""Equalization: change activations and weights so that rounding them loses less, without changing the fp32 function.

The input x of a product becomes (x - shift) / scale, channel by channel, and the weights and bias of the product
compensate for it. The layer that computes x absorbs the change, so it costs nothing at run time:

    c_attn, mlp.c_fc     absorbed by gain and bias of the LayerNorm before
    attn.c_proj          by the value columns of c_attn: attention weights sum to 1, so a shift passes through unchanged
    output layer         by gain and bias of ln_f, scale only; a tied embedding is divided again after the lookup
    mlp.c_proj           by c_fc, scale only, and only through relu: relu(x / s) = relu(x) / s for s > 0

In the post-norm blocks of a GPT, what LayerNorm puts out is the residual too, so c_attn and mlp.c_fc stay unchanged.
Only the last LayerNorm has one reader, the output layer.

Scales are SmoothQuant's (Xiao et al. 2022, arXiv 2211.10438), shifts Outlier Suppression+'s (Wei et al. 2023, arXiv
2304.09145).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from export.checkpoint.config import Config
from export.graph.graph import Weights
from export.quantize.precision import Floats
from runtime.graph.architecture import Architecture

OUTPUT = "output"
"""The name of the output layer among the products."""
_MATRICES = ("wte", "lm_head")
# Relative to the median size of the channels. Channels that are always zero, or that no weight reads, count as this
# large, so that scales stay finite.
_FLOOR = 1e-3
# Relative to the largest channel, so that no scale overflows fp32.
_LEAST = 1e-15


@dataclasses.dataclass(frozen=True)
class Equalization:
    """x becomes (x - shift) / scale."""

    scale: Floats  # [n_in], above 0
    shift: Floats  # [n_in]

    def apply(self, x: Floats) -> Floats:
        """The equalized inputs: [..., n_in] -> [..., n_in]."""
        equalized: Floats = ((x - self.shift) / self.scale).astype(np.float32)
        return equalized

    def range(self, lowest: Floats, highest: Floats) -> tuple[float, float]:
        """The lowest and the highest equalized input, from those of each channel before, [n_in]."""
        return float(self.apply(lowest).min()), float(self.apply(highest).max())

    def moments(self, moments: NDArray[np.float64], mean: Floats) -> NDArray[np.float64]:
        """Second moments after equalization, from those before: both [n_in, n_in]. The argument is overwritten.

        mean: of each channel before, [n_in].
        """
        shift = self.shift.astype(np.float64)
        crossed = np.outer(shift, mean)
        moments -= crossed
        moments -= crossed.T
        moments += np.outer(shift, shift)
        moments /= self.scale
        moments /= self.scale[:, None]
        return moments


def identity(n_in: int) -> Equalization:
    """No change."""
    return Equalization(np.ones(n_in, np.float32), np.zeros(n_in, np.float32))


def norm_readers(shape: Architecture) -> dict[str, str]:
    """The LayerNorms that can absorb a change, because one product alone reads them, and that product."""
    readers = {shape.final_norm: OUTPUT}
    if not shape.is_post_norm:
        for layer in range(shape.n_layer):
            readers |= {f"h.{layer}.ln_1": f"h.{layer}.attn.c_attn", f"h.{layer}.ln_2": f"h.{layer}.mlp.c_fc"}
    return readers


def can_shift(product: str, *, is_post_norm: bool = False) -> bool:
    """Whether the layer that computes the input of this product can absorb a shift."""
    return product.endswith(("attn.c_proj",) if is_post_norm else ("attn.c_attn", "attn.c_proj", "mlp.c_fc"))


def can_scale(product: str, activation_function: str, *, is_post_norm: bool = False) -> bool:
    """Whether the layer that computes the input of this product can absorb a scale."""
    if can_shift(product, is_post_norm=is_post_norm) or product == OUTPUT:
        return True
    return product.endswith("mlp.c_proj") and activation_function == "relu"


def scales(activations: Floats, weights: Floats, strength: float) -> Floats:
    """SmoothQuant's scales [n_in], from the size of each activation channel and of the weights that read it.

    strength: with 1 all activation channels become equally large, with 0 all weight channels (alpha in the paper).
    The geometric mean of the scales is 1.
    """
    logs = strength * np.log(_floored(activations)) - (1 - strength) * np.log(_floored(weights))
    normalized: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return normalized


def _floored(sizes: Floats) -> NDArray[np.float64]:
    """The sizes, none smaller than `_FLOOR` times the median of those above 0, or `_LEAST` times the largest."""
    # In fp64, where the floor of subnormal fp32 numbers is not 0.
    doubles = sizes.astype(np.float64)
    typical = np.median(doubles[doubles > 0]) if (doubles > 0).any() else 1.0
    return np.maximum(doubles, max(_FLOOR * typical, _LEAST * doubles.max()))


def root_mean_square(values: Floats, axis: int) -> Floats:
    """The root mean square of a matrix along one axis, summed in fp64 without an fp64 copy of the matrix."""
    sums = np.einsum("ij,ij->j" if axis == 0 else "ij,ij->i", values, values, dtype=np.float64)
    roots: Floats = np.sqrt(sums / values.shape[axis]).astype(np.float32)
    return roots


def largest(values: Floats, axis: int) -> Floats:
    """The largest absolute value of a matrix along one axis, without a copy of the matrix."""
    values_per_channel: Floats = np.maximum(values.max(axis), -values.min(axis))
    return values_per_channel


class EqualizedTensors:
    """The tensors of a checkpoint after equalization, each computed when it is read."""

    def __init__(self, config: Config, tensors: Weights, equalizations: Mapping[str, Equalization]) -> None:
        """equalizations: by the name of the product, such as `h.0.attn.c_attn`; others stay unchanged."""
        self._tensors = tensors
        self._equalizations = equalizations
        self._n_embd = config.n_embd
        self._relu = config.activation_function == "relu"
        self._tied = config.tie_word_embeddings
        self._readers = norm_readers(config)

    @property
    def embedding_factor(self) -> Floats | None:
        """The factor [n_embd] on a row of the embedding after its lookup; None for no factor."""
        output = self._equalizations.get(OUTPUT)
        if output is None or not self._tied:
            return None
        factor: Floats = (1 / output.scale).astype(np.float32)
        return factor

    @property
    def hidden_factor(self) -> Floats | None:
        """The factor [n_embd] from what the output layer reads to the last hidden states; None for no factor."""
        output = self._equalizations.get(OUTPUT)
        return None if output is None else output.scale

    def __getitem__(self, name: str) -> Floats:
        """The equalized tensor, in fp32."""
        tensor = self._tensors[name]
        owner, _, part = name.rpartition(".")
        if owner in self._readers:
            return self._norm(tensor, part, self._readers[owner])
        if owner in _MATRICES:
            return self._output_layer(tensor, owner)
        return self._product(owner, part, tensor) if owner.startswith("h.") else tensor

    def _norm(self, tensor: Floats, part: str, reader: str) -> Floats:
        """Gain or bias of the LayerNorm that computes the input of the product `reader`."""
        equalization = self._equalizations.get(reader)
        if equalization is None:
            return tensor
        shift = equalization.shift if part == "bias" else 0
        return _fp32((tensor - shift) / equalization.scale)

    def _output_layer(self, tensor: Floats, name: str) -> Floats:
        """The matrix `wte` or `lm_head`, scaled if it is the output layer."""
        equalization = self._equalizations.get(OUTPUT)
        is_output = name == ("wte" if self._tied else "lm_head")
        return tensor if equalization is None or not is_output else _fp32(tensor * equalization.scale)

    def _product(self, name: str, part: str, tensor: Floats) -> Floats:
        """Weight or bias of a product: compensate for its equalized input, then absorb that of the next product."""
        equalization = self._equalizations.get(name)
        if part == "weight" and equalization is not None:
            tensor = _fp32(tensor * equalization.scale[:, None])
        if part == "bias" and equalization is not None and equalization.shift.any():
            weight = self._tensors[f"{name}.weight"].astype(np.float64)
            tensor = _fp32(tensor + equalization.shift @ weight)
        return self._absorb(name, part, tensor)

    def _absorb(self, name: str, part: str, tensor: Floats) -> Floats:
        """Apply the equalization of the next product's input to the columns that compute it."""
        if name.endswith("attn.c_attn"):
            reader = name.replace("c_attn", "c_proj")
            columns = slice(2 * self._n_embd, None)
        elif name.endswith("mlp.c_fc") and self._relu:
            reader = name.replace("c_fc", "c_proj")
            columns = slice(None)
        else:
            return tensor
        equalization = self._equalizations.get(reader)
        if equalization is None:
            return tensor
        absorbed = np.array(tensor, np.float32)
        shift = equalization.shift if part == "bias" else 0
        absorbed[..., columns] = (absorbed[..., columns] - shift) / equalization.scale
        return absorbed


def _fp32(array: NDArray[np.floating]) -> Floats:
    return np.ascontiguousarray(array, np.float32)


def from_weights(config: Config, tensors: Weights) -> dict[str, Equalization]:
    """Estimate all equalizations without a text: a channel after LayerNorm is about as large as its gain and bias.

    Good enough for the model that writes the calibration text. Raises ValueError for weights so large that the sizes
    overflow fp32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        estimates = _from_weights(config, tensors)
    for name, estimate in estimates.items():
        if not (np.isfinite(estimate.scale).all() and np.isfinite(estimate.shift).all()):
            raise ValueError(
                f"{name}: its inputs overflow fp32, whatever the text; its weights are damaged, or too large"
            )
    return estimates


def _from_weights(config: Config, tensors: Weights) -> dict[str, Equalization]:
    readers = norm_readers(config).items()
    estimates = {reader: _after_norm(tensors, norm, reader) for norm, reader in readers if reader != OUTPUT}
    for layer in range(config.n_layer):
        estimates |= _estimate_values(config, tensors, layer)
    output = tensors["wte.weight" if config.tie_word_embeddings else "lm_head.weight"]
    sizes = np.hypot(tensors[f"{config.final_norm}.weight"], tensors[f"{config.final_norm}.bias"])
    estimates[OUTPUT] = Equalization(scales(sizes, root_mean_square(output, 0), 0.5), np.zeros_like(sizes))
    return estimates


def _after_norm(tensors: Weights, norm: str, reader: str) -> Equalization:
    """The estimate for a product that reads the output of a LayerNorm."""
    gain = tensors[f"{norm}.weight"]
    bias = tensors[f"{norm}.bias"]
    return Equalization(scales(np.abs(gain), root_mean_square(tensors[f"{reader}.weight"], 1), 0.5), bias)


def _estimate_values(shape: Architecture, tensors: Weights, layer: int) -> dict[str, Equalization]:
    """The estimate for `attn.c_proj`, which reads the values of attention.

    Assumes that the channels of the input of `attn.c_attn` are independent.
    """
    name = f"h.{layer}.attn.c_proj"
    gain, mean = _attention_input(shape, tensors, layer)
    columns = tensors[f"h.{layer}.attn.c_attn.weight"][:, 2 * shape.n_embd :]
    sizes = root_mean_square(gain[:, None] * columns, 0)
    bias = tensors[f"h.{layer}.attn.c_attn.bias"][2 * shape.n_embd :] + mean @ columns
    return {name: Equalization(scales(sizes, root_mean_square(tensors[f"{name}.weight"], 1), 0.5), bias)}


def _attention_input(shape: Architecture, tensors: Weights, layer: int) -> tuple[Floats, Floats]:
    """About how large the channels are that c_attn reads, and their means, [n_embd] each."""
    if not shape.is_post_norm:
        norm = f"h.{layer}.ln_1"
    elif layer > 0:
        norm = shape.norm_after_mlp(layer - 1)
    else:
        # The first layer of a GPT reads the embeddings as they are.
        return root_mean_square(tensors["wte.weight"], 0), np.zeros(shape.n_embd, np.float32)
    return tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]
