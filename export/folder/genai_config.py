"""`genai_config.json`: the description of the graph that onnxruntime-genai needs to open the folder."""

from __future__ import annotations

from typing import Any

from export.checkpoint.config import Config

NAME = "genai_config.json"


def genai_config(config: Config) -> dict[str, Any]:
    """The file's content, for the fused graph in `model.onnx`.

    The type is the generic `decoder`, since genai's `gpt2` expects keys and values packed in one tensor. With
    `past_present_share_buffer` the attention operator writes the cache in place.
    """
    decoder = {
        "filename": "model.onnx",
        # An empty list means the CPU.
        "session_options": {"provider_options": []},
        "hidden_size": config.n_embd,
        "head_size": config.head_dim,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "num_hidden_layers": config.n_layer,
        "inputs": {name: name for name in ("input_ids", "attention_mask", "position_ids")}
        | {f"past_{what}_names": f"past_key_values.%d.{what}" for what in ("key", "value")},
        "outputs": {"logits": "logits"} | {f"present_{what}_names": f"present.%d.{what}" for what in ("key", "value")},
    }
    bos = _known(config.bos_token_id, config)
    eos = _known(config.eos_token_id, config)
    model = {
        "type": "decoder",
        "vocab_size": config.vocab_size,
        "context_length": config.n_positions,
        **({"bos_token_id": bos[0]} if bos else {}),
        **({"eos_token_id": eos if len(eos) > 1 else eos[0]} if eos else {}),
        # Padding is masked, so any id will do.
        "pad_token_id": eos[0] if eos else 0,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": config.n_positions, "past_present_share_buffer": True}
    return {"model": model, "search": search}


def _known(ids: int | list[int] | None, config: Config) -> list[int]:
    """The ids that lie within the vocabulary.

    Some fine-tunes have a smaller vocabulary and keep GPT-2's 50256, which genai refuses to open.
    """
    several = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return [id_ for id_ in several if 0 <= id_ < config.vocab_size]
