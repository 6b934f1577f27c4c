"""`random:SIZE`: a checkpoint in one of OpenAI's sizes with random weights, to test a device without a download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from export.checkpoint.config import Config
from export.checkpoint.weights import GPT_NAMES, write_weights
from export.json_file import write_json
from runtime.graph.architecture import GPT

SIZES = {
    "distilgpt2": Config(n_layer=6),
    "gpt2": Config(),
    "gpt2-medium": Config(n_layer=24, n_embd=1024, n_head=16),
    "gpt2-large": Config(n_layer=36, n_embd=1280, n_head=20),
    "gpt2-xl": Config(n_layer=48, n_embd=1600, n_head=25),
    "openai-gpt": Config(model_type=GPT, vocab_size=40478, n_positions=512, bos_token_id=None, eos_token_id=None),
}
DEMO_TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "demo" / "tokenizer.json"
END = "<|endoftext|>"


def write(size: str, folder: Path, tokenizer: Path | None = None) -> None:
    """Write a Hugging Face checkpoint folder of that size, with the same weights every time and on every machine.

    tokenizer: a folder with a tokenizer.json to use; by default the demo's tokenizer, extended to the vocabulary.
    Raises ValueError for an unknown size, FileNotFoundError for a missing tokenizer.
    """
    if size not in SIZES:
        raise ValueError(f"random:{size} is not known; the sizes are {', '.join(f'random:{s}' for s in SIZES)}")
    source = tokenizer / "tokenizer.json" if tokenizer else DEMO_TOKENIZER
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing; --tokenizer FOLDER names a folder with a tokenizer.json")
    folder.mkdir(parents=True)
    config = SIZES[size]
    write_json(folder / "config.json", _config_json(config))
    if tokenizer:
        shutil.copyfile(source, folder / "tokenizer.json")
    else:
        write_json(folder / "tokenizer.json", stand_in_tokenizer(source, config.vocab_size))
    n_tensors = len(config.tensor_shapes())
    write_weights(tqdm(_tensors(config), total=n_tensors, desc=f"random {size}", unit="tensor"), folder)


def stand_in_tokenizer(source: Path, vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer extended to `vocab_size` by tokens that no text encodes to; the end token is last."""
    tokenizer: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    words = sorted((w for w in tokenizer["model"]["vocab"] if w != END), key=tokenizer["model"]["vocab"].__getitem__)
    # Ġ stands for a space in the byte-level alphabet.
    words += [f"Ġ[{index}]" for index in range(len(words), vocab_size - 1)]
    tokenizer["model"]["vocab"] = {word: index for index, word in enumerate([*words, END])}
    for token in tokenizer["added_tokens"]:
        token["id"] = vocab_size - 1
    return tokenizer


def _config_json(config: Config) -> dict[str, Any]:
    sizes = {key: getattr(config, key) for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    architecture = "OpenAIGPTLMHeadModel" if config.model_type == GPT else "GPT2LMHeadModel"
    return {"model_type": config.model_type, "architectures": [architecture], **sizes, **ends}


def _tensors(config: Config) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """GPT-2's initialization: standard deviation 0.02, and less for the products that add to the residual.

    Names are those of transformers, without the prefix `transformer.`.
    """
    names = {ours: theirs for theirs, ours in GPT_NAMES.items()} if config.model_type == GPT else {}
    generator = np.random.Generator(np.random.Philox(key=0))
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 1:
            yield names.get(name, name), np.full(shape, float(name.endswith("weight")), np.float32)
        else:
            deviation = 0.02 * ((2 * config.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1)
            yield names.get(name, name), generator.standard_normal(shape, np.float32) * np.float32(deviation)
