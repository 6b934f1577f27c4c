"""Equalization: the same function in fp32, with activations and weights that lose less when they are rounded.

The input x of a product becomes (x - shift) / scale, channel by channel, and the product's weights and bias become
what makes up for it. Whatever computes x absorbs the change, so it costs nothing at run time:

    c_attn, mlp.c_fc     gain and bias of the LayerNorm before
    attn.c_proj          value columns of c_attn: attention weights sum to 1, so a shift passes through unchanged
    output layer         gain and bias of ln_f, scale only; a tied embedding is divided again after the lookup
    mlp.c_proj           c_fc, scale only, and only through relu: relu(x / s) = relu(x) / s for s > 0

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
from export.graph.graph import Weights, architecture
from export.quantize.precision import Floats
from runtime.graph.architecture import Architecture

OUTPUT = "output"
"""The name of the output layer among the products."""
_MATRICES = ("wte", "lm_head")
# channels that are always zero, or that no weight reads, count as this part of a typical one: factors stay finite
_FLOOR = 1e-3
# and as this part of the largest, so that no factor leaves fp32
_LEAST = 1e-15


@dataclasses.dataclass(frozen=True)
class Equalization:
    """x becomes (x - shift) / scale."""

    scale: Floats  # [n_in], above 0
    shift: Floats  # [n_in]

    def apply(self, x: Floats) -> Floats:
        """Inputs [..., n_in] as the equalized product reads them."""
        equalized: Floats = ((x - self.shift) / self.scale).astype(np.float32)
        return equalized

    def moments(self, moments: NDArray[np.float64], mean: Floats) -> NDArray[np.float64]:
        """E[x x^T] -> E[x' x'^T], both [n_in, n_in]; the argument is overwritten."""
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
    """LayerNorm -> the product that reads it, for those that nothing else reads: they can absorb a change."""
    found = {shape.final_norm: OUTPUT}
    if not shape.is_post_norm:
        for layer in range(shape.n_layer):
            found |= {f"h.{layer}.ln_1": f"h.{layer}.attn.c_attn", f"h.{layer}.ln_2": f"h.{layer}.mlp.c_fc"}
    return found


def can_shift(product: str, *, is_post_norm: bool = False) -> bool:
    """Whether what computes the input of this product can absorb a shift."""
    return product.endswith(("attn.c_proj",) if is_post_norm else ("attn.c_attn", "attn.c_proj", "mlp.c_fc"))


def can_scale(product: str, activation_function: str, *, is_post_norm: bool = False) -> bool:
    """Whether what computes the input of this product can absorb a scale."""
    if can_shift(product, is_post_norm=is_post_norm) or product == OUTPUT:
        return True
    return product.endswith("mlp.c_proj") and activation_function == "relu"


def scales(activations: Floats, weights: Floats, strength: float) -> Floats:
    """SmoothQuant's scales [n_in] from the size of each channel of the activations and of the weights that read it.

    strength: 1 makes all activation channels alike, 0 all weight channels. The geometric mean of the scales is 1.
    """
    found = strength * np.log(_floored(activations)) - (1 - strength) * np.log(_floored(weights))
    centred: Floats = np.exp(found - found.mean()).astype(np.float32)
    return centred


def _floored(sizes: Floats) -> NDArray[np.float64]:
    # in fp64: a part of a size may be too small for fp32
    exact = sizes.astype(np.float64)
    typical = np.median(exact[exact > 0]) if (exact > 0).any() else 1.0
    return np.maximum(exact, max(_FLOOR * typical, _LEAST * exact.max()))


def root_mean_square(values: Floats, axis: int) -> Floats:
    """Of a matrix along one axis, summed in fp64 without a copy of the matrix in it."""
    sums = np.einsum("ij,ij->j" if axis == 0 else "ij,ij->i", values, values, dtype=np.float64)
    found: Floats = np.sqrt(sums / values.shape[axis]).astype(np.float32)
    return found


def largest(values: Floats, axis: int) -> Floats:
    """The largest absolute value along one axis, without a copy."""
    found: Floats = np.maximum(values.max(axis), -values.min(axis))
    return found


class EqualizedTensors:
    """The tensors of a checkpoint after equalization, computed as they are asked for."""

    def __init__(self, config: Config, tensors: Weights, found: Mapping[str, Equalization]) -> None:
        """`found`: of each product by its name, such as `h.0.attn.c_attn`; what is not there stays unchanged."""
        self._tensors = tensors
        self._found = found
        self._n_embd = config.n_embd
        self._relu = config.activation_function == "relu"
        self._tied = config.tie_word_embeddings
        self._readers = norm_readers(architecture(config))

    @property
    def embedding_factor(self) -> Floats | None:
        """What a looked-up row of the embedding is multiplied by, [n_embd]; None for nothing."""
        output = self._found.get(OUTPUT)
        if output is None or not self._tied:
            return None
        factor: Floats = (1 / output.scale).astype(np.float32)
        return factor

    def __getitem__(self, name: str) -> Floats:
        """The tensor, fp32."""
        tensor = self._tensors[name]
        owner, _, part = name.rpartition(".")
        if owner in self._readers:
            return self._norm(tensor, part, self._readers[owner])
        if owner in _MATRICES:
            return self._output_layer(tensor, owner)
        return self._product(owner, part, tensor) if owner.startswith("h.") else tensor

    def _norm(self, tensor: Floats, part: str, reader: str) -> Floats:
        """Gain or bias of the LayerNorm that computes the input of `reader`."""
        found = self._found.get(reader)
        if found is None:
            return tensor
        shift = found.shift if part == "bias" else 0
        return _fp32((tensor - shift) / found.scale)

    def _output_layer(self, tensor: Floats, name: str) -> Floats:
        found = self._found.get(OUTPUT)
        is_output = name == ("wte" if self._tied else "lm_head")
        return tensor if found is None or not is_output else _fp32(tensor * found.scale)

    def _product(self, name: str, part: str, tensor: Floats) -> Floats:
        """Weight or bias: first for the equalized input, then what the output must become for the next product."""
        found = self._found.get(name)
        if part == "weight" and found is not None:
            tensor = _fp32(tensor * found.scale[:, None])
        if part == "bias" and found is not None and found.shift.any():
            weight = self._tensors[f"{name}.weight"].astype(np.float64)
            tensor = _fp32(tensor + found.shift @ weight)
        return self._absorb(name, part, tensor)

    def _absorb(self, name: str, part: str, tensor: Floats) -> Floats:
        """The change of the next product's input, in the columns that compute it."""
        if name.endswith("attn.c_attn"):
            reader, columns = name.replace("c_attn", "c_proj"), slice(2 * self._n_embd, None)
        elif name.endswith("mlp.c_fc") and self._relu:
            reader, columns = name.replace("c_fc", "c_proj"), slice(None)
        else:
            return tensor
        found = self._found.get(reader)
        if found is None:
            return tensor
        absorbed = np.array(tensor, np.float32)
        shift = found.shift if part == "bias" else 0
        absorbed[..., columns] = (absorbed[..., columns] - shift) / found.scale
        return absorbed


def _fp32(array: NDArray[np.floating]) -> Floats:
    return np.ascontiguousarray(array, np.float32)


def from_weights(config: Config, tensors: Weights) -> dict[str, Equalization]:
    """A first guess without any text: a channel after LayerNorm is about as large as its gain and bias.

    Good enough for a model that writes the text which the real statistics are measured on.
    Raises ValueError for weights so large that the sizes pass fp32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = _from_weights(config, tensors)
    for name, guessed in found.items():
        if not (np.isfinite(guessed.scale).all() and np.isfinite(guessed.shift).all()):
            raise ValueError(f"{name}: its inputs pass fp32 whatever the text; its weights are damaged, or too large")
    return found


def _from_weights(config: Config, tensors: Weights) -> dict[str, Equalization]:
    shape = architecture(config)
    readers = norm_readers(shape).items()
    found = {reader: _after_norm(tensors, norm, reader) for norm, reader in readers if reader != OUTPUT}
    for layer in range(config.n_layer):
        found |= _value_guess(shape, tensors, layer)
    output = tensors["wte.weight" if config.tie_word_embeddings else "lm_head.weight"]
    sizes = np.hypot(tensors[f"{shape.final_norm}.weight"], tensors[f"{shape.final_norm}.bias"])
    found[OUTPUT] = Equalization(scales(sizes, root_mean_square(output, 0), 0.5), np.zeros_like(sizes))
    return found


def _after_norm(tensors: Weights, norm: str, reader: str) -> Equalization:
    gain, bias = tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]
    return Equalization(scales(np.abs(gain), root_mean_square(tensors[f"{reader}.weight"], 1), 0.5), bias)


def _value_guess(shape: Architecture, tensors: Weights, layer: int) -> dict[str, Equalization]:
    """Values are as large as their columns, for an input of independent channels."""
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
        # the first layer of a GPT reads the embeddings as they are
        return root_mean_square(tensors["wte.weight"], 0), np.zeros(shape.n_embd, np.float32)
    return tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]
