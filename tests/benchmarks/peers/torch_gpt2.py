"""GPT-2 in plain torch, from a checkpoint: `torch.nn.Linear` layers, which torch's quantizers know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .checkpoint import Checkpoint


class Gpt2(nn.Module):
    """`attention` is made for each layer by the class that a runtime needs: it keeps the keys and values.

    multiple: of outputs that the output layer has; those past the vocabulary are zeros, and left to the caller.
    """

    def __init__(self, config: dict[str, Any], attention: type[nn.Module], multiple: int = 1) -> None:
        super().__init__()
        width = config["n_embd"]
        self.n_positions: int = config["n_positions"]
        self.n_vocab: int = config["vocab_size"]
        self.wte = nn.Embedding(config["vocab_size"], width)
        self.wpe = nn.Embedding(self.n_positions, width)
        self.layers = nn.ModuleList(Layer(config, attention(config)) for _ in range(config["n_layer"]))
        self.ln_f = _norm(config)
        # A matrix of its own: the embedding stays fp32, the output layer is quantized.
        self.lm_head = nn.Linear(width, -(-self.n_vocab // multiple) * multiple, bias=False)

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor, start: Any) -> torch.Tensor:
        """ids: [rows, n], at `positions` [n]. Returns [rows, n, n_embd]."""
        x = self.wte(ids) + self.wpe(positions)
        for layer in self.layers:
            x = layer(x, start)
        return self.ln_f(x)


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any], attention: nn.Module) -> None:
        super().__init__()
        width = config["n_embd"]
        self.n_head: int = config["n_head"]
        self.ln_1 = _norm(config)
        self.c_attn = nn.Linear(width, 3 * width)
        self.attention = attention
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = _norm(config)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, start: Any) -> torch.Tensor:
        rows, n, width = x.shape
        heads = (rows, n, self.n_head, width // self.n_head)
        query, key, value = (part.reshape(heads) for part in self.c_attn(self.ln_1(x)).split(width, dim=-1))
        x = x + self.c_proj(self.attention(query, key, value, start).reshape(rows, n, width))
        return x + self.mlp_proj(functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


def _norm(config: dict[str, Any]) -> nn.LayerNorm:
    return nn.LayerNorm(config["n_embd"], eps=config.get("layer_norm_epsilon", 1e-5))


def load(source: Path, attention: type[nn.Module], multiple: int = 1) -> Gpt2:
    """A model in fp32 with the weights of a checkpoint. Products are [in, out] there, and [out, in] in torch."""
    checkpoint = Checkpoint(source)
    model = Gpt2(checkpoint.config, attention, multiple)
    weights = {target: torch.from_numpy(checkpoint[name]) for name, target in names(checkpoint.config).items()}
    for target in weights:
        if target.endswith(PRODUCTS):
            weights[target] = weights[target].T.contiguous()
    head = "lm_head.weight" if "lm_head.weight" in checkpoint.names else "wte.weight"
    weights["lm_head.weight"] = torch.zeros_like(model.lm_head.weight)
    weights["lm_head.weight"][: model.n_vocab] = torch.from_numpy(checkpoint[head])
    model.load_state_dict(weights)
    return model.eval()


LAYER_NAMES = {
    "ln_1": "ln_1",
    "attn.c_attn": "c_attn",
    "attn.c_proj": "c_proj",
    "ln_2": "ln_2",
    "mlp.c_fc": "c_fc",
    "mlp.c_proj": "mlp_proj",
}
PRODUCTS = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "mlp_proj.weight")


def names(config: dict[str, Any]) -> dict[str, str]:
    """GPT-2's names of tensors, and this module's; without the output layer."""
    found = {"wte.weight": "wte.weight", "wpe.weight": "wpe.weight"}
    found |= {f"ln_f.{part}": f"ln_f.{part}" for part in ("weight", "bias")}
    for index in range(config["n_layer"]):
        for name, target in LAYER_NAMES.items():
            found |= {f"h.{index}.{name}.{part}": f"layers.{index}.{target}.{part}" for part in ("weight", "bias")}
    return found
