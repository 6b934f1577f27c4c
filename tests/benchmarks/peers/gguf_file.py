"""GPT-2 in llama.cpp's file format, written with the `gguf` package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import Checkpoint

NAMES = {  # llama.cpp's names of GPT-2's tensors
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gguf(source: Path, target: Path) -> None:
    """A checkpoint of GPT-2 in llama.cpp's format."""
    import gguf

    checkpoint = Checkpoint(source)
    config = checkpoint.config
    writer = gguf.GGUFWriter(target, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config.get("layer_norm_epsilon", 1e-5))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_tokenizer(writer, source / "tokenizer.json", config["eos_token_id"])
    for name in checkpoint.names:
        writer.add_tensor(tensor_name(name), stored_form(name, checkpoint[name]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored_form(name: str, tensor: np.ndarray) -> np.ndarray:
    """Products [out, in] in fp16, where GPT-2 has [in, out]; embeddings as they lie; all else fp32."""
    if tensor.ndim == 1 or name == "wpe.weight":
        return tensor
    return np.ascontiguousarray(tensor if name == "wte.weight" else tensor.T).astype(np.float16)


def tensor_name(name: str) -> str:
    """h.0.attn.c_attn.weight -> blk.0.attn_qkv.weight."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("h."):
        return f"{NAMES[stem]}.{kind}"
    _, layer, rest = stem.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def add_tokenizer(writer: Any, path: Path, eos_token_id: int) -> None:
    """The byte-level BPE of tokenizer.json."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].__getitem__))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(eos_token_id)
    writer.add_eos_token_id(eos_token_id)
