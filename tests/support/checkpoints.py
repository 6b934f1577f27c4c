"""Tiny GPT-2 checkpoints that transformers writes, and model folders built from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from export import build
from runtime.graph.attention import CacheType
from runtime.model.model import Model
from tests.support.building import byte_tokenizer

TINY: dict[str, Any] = {"vocab_size": 300, "n_positions": 96, "n_embd": 64, "n_layer": 3, "n_head": 4}
TINY |= {"bos_token_id": 256, "eos_token_id": 256}
Floats = NDArray[np.float32]
Weights = dict[str, NDArray[Any]]
CLOSE = 1e-5  # of the spread of a tiny model's logits: what the order of fp32 sums explains
torch.set_num_threads(1)  # so small a model only loses by more


def write_checkpoint(
    folder: Path, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", **config: Any
) -> GPT2LMHeadModel:
    """Save a random GPT-2, TINY but for `config`; returns it as transformers opens it in fp32."""
    model = GPT2LMHeadModel(GPT2Config(**TINY | config))
    randomize(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    byte_tokenizer(257).save(str(folder / "tokenizer.json"))
    return open_checkpoint(folder)


def open_checkpoint(folder: Path) -> GPT2LMHeadModel:
    """The oracle. Eager: transformers' other attentions ignore scale_attn_weights and its like."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def randomize(model: GPT2LMHeadModel, seed: int = 0) -> None:
    """Weights that let no part of the network pass unnoticed: biases, norms and attention all count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(0.3 * noise + float("ln_" in name and name.endswith("weight")))
            else:
                weight.copy_(noise * (0.5 if name.endswith(("wte.weight", "wpe.weight")) else weight.shape[0] ** -0.5))


def change_config(folder: Path, /, *, remove: Sequence[str] = (), **changes: Any) -> None:
    """Edit a checkpoint's config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove}), encoding="utf-8")


def edit_weights(folder: Path, edit: Callable[[Weights], object]) -> None:
    """Change the tensors of a checkpoint that is one file."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def build_model(
    checkpoint: Path, precision: str = "fp32", block_size: int | None = None, into: Path | None = None
) -> Path:
    """The model folder that the build command makes without calibration, `into` a folder or beside the checkpoint."""
    target = (into or checkpoint.parent) / f"{checkpoint.name}-{precision}{block_size or ''}"
    blocks = ["--block-size", str(block_size)] if block_size else []
    blocks += ["--no-calibration"] if precision != "fp32" else []
    work = ["--no-reference", "--verify", "none", "--output", str(target), "--force"]
    build.main([str(checkpoint), "--precision", precision, *blocks, *work])
    return target


def torch_logits(model: GPT2LMHeadModel, ids: Sequence[int]) -> Floats:
    """[len(ids), n_vocab], by transformers."""
    with torch.no_grad():
        logits: Floats = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def folder_logits(folder: Path, ids: Sequence[int], cache: CacheType | None = None) -> Floats:
    """[len(ids), n_vocab], by the runtime in one pass. cache: as in `runtime.load`."""
    with Model(folder, threads=1, cache=cache) as model:
        return model.new_cache(len(ids)).extend(ids, keep=len(ids))


def difference(logits: Floats, expected: Floats) -> float:
    """The largest difference, relative to the spread of the expected."""
    assert logits.shape == expected.shape
    return float(np.abs(logits - expected).max() / expected.std())


def relative_error(logits: NDArray[Any], expected: NDArray[Any]) -> float:
    """Root of the mean square of the difference, relative to the spread of the expected."""
    assert logits.shape == expected.shape
    return float(np.sqrt(np.square(logits - expected).mean()) / expected.std())


def in_passes(model: Model, ids: list[int], ends: Sequence[int]) -> Floats:
    """Logits of every id, the passes ending at `ends`."""
    cache, cuts = model.new_cache(len(ids)), [0, *ends, len(ids)]
    return np.concatenate([cache.extend(ids[begin:end], keep=end - begin) for begin, end in itertools.pairwise(cuts)])


def in_steps(model: Model, ids: list[int]) -> Floats:
    """Logits of every id, one a pass."""
    cache = model.new_cache(len(ids))
    return np.concatenate([np.copy(cache.step([id_])) for id_ in ids])


def greedy(model: Model, prompt: list[int], n: int) -> list[int]:
    """The likeliest ids, whatever ends a text."""
    cache = model.new_cache(len(prompt) + n)
    ids = [int(cache.extend(prompt)[-1].argmax())]
    while len(ids) < n:
        ids.append(int(cache.step(ids[-1:])[0].argmax()))
    return ids


def torch_greedy(oracle: GPT2LMHeadModel, prompt: list[int], ids: list[int]) -> list[int]:
    """What transformers would have chosen, without a cache, after the prompt and each of the ids."""
    following: list[int] = torch_logits(oracle, prompt + ids[:-1])[len(prompt) - 1 :].argmax(-1).tolist()
    return following


def some_ids(n: int, vocab_size: int = TINY["vocab_size"], seed: int = 0) -> list[int]:
    """Ids from all over the vocabulary."""
    ids: list[int] = np.random.default_rng(seed).integers(0, vocab_size, n).tolist()
    return ids
