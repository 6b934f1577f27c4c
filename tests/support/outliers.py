"""Stressed checkpoints: outlier channels, which random weights and the demo do not have and large models do.

`write` changes no output in fp32: what writes into a channel is multiplied by a factor, what reads the channel is
divided by it. `write_large_first` and `write_relu` make other models, each its own reference.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

PLACES = ("ln_1", "ln_2", "value", "ln_f", "hidden")
NORMS = {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"}  # and the product that reads each
HANDED_ON = {"value": ("attn.c_attn", "attn.c_proj"), "hidden": ("mlp.c_fc", "mlp.c_proj")}  # from product to product
PREFIX = "transformer."
RIDGE = 1e-4  # of the mean square of a hidden channel, in the fit of `write_relu`
Tensors = dict[str, NDArray[np.float32]]


def write(
    source: Path, target: Path, *, factor: float, channels: int, places: Collection[str], seed: int = 0
) -> dict[str, list[int]]:
    """Write a checkpoint with the fp32 function of `source`, and with `channels` outlier channels in each place.

    source: a Hugging Face GPT-2 folder with one model.safetensors, of any float type; target: a new folder, fp32.
    places: of `ln_1`, `ln_2`, `value` (the columns of c_attn), `ln_f` (with an untied lm_head.weight), and for a relu
    model `hidden` (the columns of c_fc). The norms have the same channels in all layers, as the residual's outliers
    do; `value` and `hidden` have others in each.

    Returns the outlier channels by the name of the product that reads them, such as `h.0.attn.c_attn`.
    Raises ValueError for a factor that is not positive and finite, too many channels, or a place that is not there.
    """
    config = _read_config(source)
    _check(config, factor, channels, places)
    tensors = _read(source)
    found: dict[str, list[int]] = {}
    residual = _draw(config["n_embd"], channels, seed, "residual")
    for layer in range(config["n_layer"]):
        h = f"h.{layer}."
        for norm, reader in NORMS.items():
            if norm in places:
                _scale_norm(tensors, h + norm, residual, factor)
                tensors[f"{h}{reader}.weight"][residual] /= factor
                found[h + reader] = residual.tolist()
        for place in HANDED_ON.keys() & set(places):
            writer, reader = (h + name for name in HANDED_ON[place])
            drawn = _draw(len(tensors[f"{reader}.weight"]), channels, seed, h + place)
            _scale_outputs(tensors, writer, reader, drawn, factor)
            found[reader] = drawn.tolist()
    if "ln_f" in places:
        _untie(config, tensors)
        _scale_norm(tensors, "ln_f", residual, factor)
        tensors["lm_head.weight"][:, residual] /= factor
        found["lm_head"] = residual.tolist()
    _write(source, target, config, tensors)
    return found


def write_large_first(
    source: Path, target: Path, *, factor: float = 100, channels: int = 2, seed: int = 0
) -> dict[str, list[int]]:
    """Write a checkpoint whose first position has a residual `factor` times the typical one in a few channels.

    So it is in GPT-2, whose first position draws the attention that no other deserves. Row 0 of `wpe` is set there
    to `factor` times the root mean square of an embedding, with signs that alternate. This is another function than
    the source's: the demo's perplexity goes from 45 to 63.

    Returns {"wpe": the channels}. Raises ValueError as `write` does.
    """
    config = _read_config(source)
    _check(config, factor, channels, ())
    tensors = _read(source)
    drawn = _draw(config["n_embd"], channels, seed, "first")
    wte, wpe = tensors["wte.weight"], tensors["wpe.weight"]
    typical = math.sqrt(np.square(wte).mean(dtype=np.float64) + np.square(wpe[1:]).mean(dtype=np.float64))
    wpe[0, drawn] = factor * typical * np.where(np.arange(channels) % 2, -1, 1)
    _write(source, target, config, tensors)
    return {"wpe": drawn.tolist()}


def write_relu(source: Path, target: Path, text: Path | None = None) -> None:
    """Write a relu variant of a trained gelu checkpoint that still models text.

    mlp.c_proj of each layer, the first layer first, is fitted by ridge regression: from the relu model's hidden layer
    on a text to what the gelu layer would have put out there. The demo's perplexity on that text goes from 45.5 to
    46.0; with relu alone it would be 186.

    text: UTF-8, default the source's own evaluation.txt. Needs torch and transformers.
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel
    from transformers.activations import ACT2FN

    content = (text or source / "evaluation.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(content).ids
    model = GPT2LMHeadModel.from_pretrained(source, dtype=torch.float32).eval()
    size = model.config.n_positions
    rows = torch.tensor(ids[: len(ids) // size * size]).view(-1, size)
    with torch.no_grad():
        residual = model.transformer.wte(rows) + model.transformer.wpe.weight
        for block in model.transformer.h:
            residual += block.attn(block.ln_1(residual))[0]
            inputs = block.ln_2(residual)
            wanted = block.mlp(inputs)
            block.mlp.act = ACT2FN["relu"]
            hidden = block.mlp.act(block.mlp.c_fc(inputs))
            weight, bias = _fit(hidden.flatten(0, 1).numpy(), wanted.flatten(0, 1).numpy())
            block.mlp.c_proj.weight.copy_(torch.from_numpy(weight))
            block.mlp.c_proj.bias.copy_(torch.from_numpy(bias))
            residual += block.mlp.c_proj(hidden)
    config = _read_config(source) | {"activation_function": "relu"}
    fitted = {name: tensor.numpy() for name, tensor in model.transformer.state_dict().items()}
    _write(source, target, config, _read(source) | fitted)


def _fit(inputs: NDArray[np.float32], outputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight [n_in, n_out] and bias of the ridge regression; channels that are always zero get zeros."""
    mean_in, mean_out = inputs.mean(0, dtype=np.float64), outputs.mean(0, dtype=np.float64)
    centred = inputs - mean_in
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += RIDGE * gram.trace() / len(gram)
    weight = np.linalg.solve(gram, centred.T @ (outputs - mean_out))
    return weight.astype(np.float32), (mean_out - mean_in @ weight).astype(np.float32)


def _check(config: dict[str, Any], factor: float, channels: int, places: Collection[str]) -> None:
    if not 0 < factor < math.inf:
        raise ValueError(f"factor is {factor}; a positive, finite number is expected")
    if not 1 <= channels <= config["n_embd"]:
        raise ValueError(f"channels is {channels}; 1 to n_embd, {config['n_embd']}, are there")
    if unknown := set(places) - set(PLACES):
        raise ValueError(f"places has {', '.join(sorted(unknown))}; there are {', '.join(PLACES)}")
    if "hidden" in places and config.get("activation_function") != "relu":
        # relu(s * x) is s * relu(x) for a positive s; no other activation of GPT-2 has this
        raise ValueError(f"hidden wants a relu model; activation_function is {config.get('activation_function')!r}")


def _draw(n: int, channels: int, seed: int, what: str) -> NDArray[np.int64]:
    """Distinct channels; those of one place do not depend on which other places there are."""
    return np.random.default_rng([seed, *what.encode()]).choice(n, channels, replace=False)


def _scale_norm(tensors: Tensors, name: str, channels: NDArray[np.int64], factor: float) -> None:
    for part in ("weight", "bias"):
        tensors[f"{name}.{part}"][channels] *= factor


def _scale_outputs(tensors: Tensors, writer: str, reader: str, channels: NDArray[np.int64], factor: float) -> None:
    """What one product puts out, and the next takes in: the last columns of the writer (c_attn: the values)."""
    columns = channels - len(tensors[f"{reader}.weight"])
    tensors[f"{writer}.weight"][:, columns] *= factor
    tensors[f"{writer}.bias"][columns] *= factor
    tensors[f"{reader}.weight"][channels] /= factor


def _untie(config: dict[str, Any], tensors: Tensors) -> None:
    """The output layer gets a matrix of its own."""
    if config.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()
        config["tie_word_embeddings"] = False


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _read(folder: Path) -> Tensors:
    """Every tensor as fp32, by GPT-2's own name."""
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {name.removeprefix(PREFIX): file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118


def _write(source: Path, target: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """A copy of the source with another config and other tensors, named as transformers' GPT2LMHeadModel has them."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    stored = {name if name.startswith("lm_head.") else PREFIX + name: tensor for name, tensor in tensors.items()}
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "float32"}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
