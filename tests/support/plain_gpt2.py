"""GPT-2 in twenty lines of torch, over weights as nanoGPT names and lays them out: products as [n_out, n_in].

Written from the paper and independent of the project, to compare what becomes of checkpoints that transformers does
not open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

State = dict[str, torch.Tensor]


def random_state(
    vocab_size: int, n_positions: int, n_embd: int, n_layer: int, *, bias: bool = True, seed: int = 0
) -> State:
    """Weights that let no part of the network pass unnoticed."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    def norm() -> dict[str, torch.Tensor]:
        return {"weight": 1 + noise(n_embd, scale=0.3), "bias": noise(n_embd, scale=0.3)}

    def linear(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        return {"weight": noise(n_out, n_in, scale=n_in**-0.5), "bias": noise(n_out, scale=0.3)}

    modules = {"wte": {"weight": noise(vocab_size, n_embd, scale=0.5)}}
    modules |= {"wpe": {"weight": noise(n_positions, n_embd, scale=0.5)}, "ln_f": norm()}
    for layer in range(n_layer):
        modules |= {f"h.{layer}.ln_1": norm(), f"h.{layer}.ln_2": norm()}
        modules[f"h.{layer}.attn.c_attn"] = linear(n_embd, 3 * n_embd)
        modules[f"h.{layer}.attn.c_proj"] = linear(n_embd, n_embd)
        modules[f"h.{layer}.mlp.c_fc"] = linear(n_embd, 4 * n_embd)
        modules[f"h.{layer}.mlp.c_proj"] = linear(4 * n_embd, n_embd)
    state = {f"transformer.{name}.{part}": tensor for name, parts in modules.items() for part, tensor in parts.items()}
    if not bias:
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".bias")}
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def logits(
    state: Mapping[str, Any],
    ids: Sequence[int],
    n_head: int,
    gelu: str,
    rounding: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> NDArray[np.float32]:
    """[n, n_vocab] for ids [n]; gelu: "none" is exact, "tanh" OpenAI's approximation.

    rounding: keys and values are rounded to int8 in units of the first, after the second was subtracted, each
    [n_layer, 2, n_head, head_dim].
    """

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, state[f"transformer.{name}.weight"], state.get(f"transformer.{name}.bias"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = state[f"transformer.{name}.weight"], state.get(f"transformer.{name}.bias")
        return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def rounded(x: torch.Tensor, scale: NDArray[np.float32], center: NDArray[np.float32]) -> torch.Tensor:
        step, middle = torch.from_numpy(scale)[:, None], torch.from_numpy(center)[:, None]
        return ((x - middle) / step).round().clamp(-128, 127) * step + middle

    def attention(x: torch.Tensor, layer: int) -> torch.Tensor:
        n, width = x.shape
        query, key, value = (
            part.reshape(n, n_head, -1).transpose(0, 1)
            for part in linear(x, f"h.{layer}.attn.c_attn").split(width, dim=-1)
        )
        if rounding is not None:
            units = zip((key, value), rounding[0][layer], rounding[1][layer], strict=True)
            key, value = (rounded(part, scale, center) for part, scale, center in units)
        scores = query @ key.transpose(1, 2) / math.sqrt(width // n_head)
        weights = (scores + torch.full((n, n), -math.inf).triu(1)).softmax(-1)
        return linear((weights @ value).transpose(0, 1).reshape(n, width), f"h.{layer}.attn.c_proj")

    with torch.no_grad():
        x = state["transformer.wte.weight"][list(ids)] + state["transformer.wpe.weight"][: len(ids)]
        for layer in range(sum(name.endswith("attn.c_attn.weight") for name in state)):
            x = x + attention(norm(x, f"h.{layer}.ln_1"), layer)
            hidden = functional.gelu(linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"), approximate=gelu)
            x = x + linear(hidden, f"h.{layer}.mlp.c_proj")
        result: NDArray[np.float32] = (norm(x, "ln_f") @ state["lm_head.weight"].T).numpy()
    return result
