"""torch.compile with torchao's quantization, on the CPU: https://github.com/pytorch/ao."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .torch_gpt2 import Gpt2, load

WEIGHTS = "weights.pt"
MULTIPLE = 16  # of outputs, which the int4 product wants


class Attention(nn.Module):
    """Keys and values in buffers of [rows, heads, n_positions, head_dim]; attention reads the part that is written."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.shape = (config["n_head"], config["n_positions"], config["n_embd"] // config["n_head"])
        self.open(0, torch.float32)

    def open(self, rows: int, dtype: torch.dtype) -> None:
        """Room for so many rows."""
        self.key = torch.zeros(rows, *self.shape, dtype=dtype)
        self.value = torch.zeros(rows, *self.shape, dtype=dtype)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        end = start + query.shape[1]
        self.key[:, :, start:end] = key.transpose(1, 2)
        self.value[:, :, start:end] = value.transpose(1, 2)
        past = self.key[:, :, :end], self.value[:, :, :end]
        # Several tokens come at the beginning only, so the causal mask is a square.
        found = functional.scaled_dot_product_attention(query.transpose(1, 2), *past, is_causal=query.shape[1] > 1)
        return found.transpose(1, 2)


class Logits(nn.Module):
    """Logits of the last position [rows, n_vocab], or of all [rows, n, n_vocab]."""

    def __init__(self, gpt2: Gpt2) -> None:
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, ids: torch.Tensor, start: int, keep_all: bool) -> torch.Tensor:
        positions = torch.arange(start, start + ids.shape[1])
        hidden = self.gpt2.hidden(ids, positions, start)
        return self.gpt2.lm_head(hidden if keep_all else hidden[:, -1])[..., : self.gpt2.n_vocab]


def convert(source: Path, folder: Path, precision: str) -> None:
    """Quantize every linear layer, and keep the weights as torchao packs them."""
    from torchao.quantization import quantize_

    model = load(source, Attention, MULTIPLE)
    if precision == "int4":
        # The int4 product computes in bf16; for fp32 there is only a reference that is many times slower.
        model = model.bfloat16()
    quantize_(model, _config(precision))
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    torch.save(model.state_dict(), folder / WEIGHTS)


def _config(precision: str) -> object:
    if precision == "int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return Int8DynamicActivationInt8WeightConfig()
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=32)


class Peer:
    def __init__(self, folder: Path, threads: int) -> None:
        # Compiled code is kept for the next process, as a user would; it depends on the number of threads.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.with_name(f"{folder.name}-compiled-{threads}"))
        import torchao.prototype.quantization.int4
        import torchao.quantization  # noqa: F401  (the classes of the weights)

        torch.set_num_threads(threads)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            model = Gpt2(config, Attention, MULTIPLE)
        weights = torch.load(folder / WEIGHTS, mmap=True, weights_only=False)
        model.load_state_dict(weights, assign=True)
        self.gpt2 = model.eval()
        self.logits_of = torch.compile(Logits(model), dynamic=True)
        self._open(1)

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        self._open(1)
        self._generate([prompt], n_new, lambda ids: note(ids[0]))

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        steps = list[list[int]]()
        self._open(len(prompts))
        self._generate(prompts, n_new, steps.append)
        return [list(row) for row in zip(*steps, strict=True)]

    def logits(self, ids: list[int]) -> np.ndarray:
        self._open(1)
        with torch.inference_mode():
            return self.logits_of(torch.tensor([ids]), 0, True)[0].float().numpy()

    def _open(self, rows: int) -> None:
        """Room for the keys and values of so many rows."""
        for layer in self.gpt2.layers:
            if len(layer.attention.key) != rows:
                layer.attention.open(rows, self.gpt2.ln_f.weight.dtype)

    def _generate(self, prompts: list[list[int]], n_new: int, note: Callable[[list[int]], object]) -> None:
        ids, start = torch.tensor(prompts), 0
        with torch.inference_mode():
            for _ in range(n_new):
                logits = self.logits_of(ids, start, False)
                start += ids.shape[1]
                ids = logits.argmax(-1, keepdim=True)
                note(ids[:, 0].tolist())
