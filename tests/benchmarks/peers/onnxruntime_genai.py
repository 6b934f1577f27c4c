"""onnxruntime-genai on our own model folder: https://github.com/microsoft/onnxruntime-genai."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai


def convert(source: Path, folder: Path) -> None:
    """`source`, a model folder of ours, with the file that says what its inputs are."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    folder.mkdir()
    for name in ("model.onnx", "model.onnx_data"):
        try:
            os.link(source / name, folder / name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source / name, folder / name)
    (folder / "genai_config.json").write_text(json.dumps(genai_config(config)), encoding="utf-8")


def genai_config(config: dict) -> dict:
    """Any decoder type without special cases does: phi3 has none up to its 4,096 tokens."""
    keys = ("input_ids", "attention_mask", "position_ids")
    past = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    present = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "log_severity_level": 4, "provider_options": []},
        "filename": "model.onnx",
        "head_size": config["n_embd"] // config["n_head"],
        "hidden_size": config["n_embd"],
        "num_attention_heads": config["n_head"],
        "num_hidden_layers": config["n_layer"],
        "num_key_value_heads": config["n_head"],
        "inputs": {name: name for name in keys} | past,
        "outputs": {"logits": "logits"} | present,
    }
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), config["eos_token_id"])
    sizes = {"context_length": config["n_positions"], "vocab_size": config["vocab_size"]}
    search = {"do_sample": False, "max_length": config["n_positions"], "past_present_share_buffer": True}
    return {"model": {"type": "phi3", "decoder": decoder} | ends | sizes, "search": search}


class Peer:
    def __init__(self, folder: Path, threads: int) -> None:
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = onnxruntime_genai.Model(config)

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        generator = self._generator([prompt], n_new)
        for _ in range(n_new):
            generator.generate_next_token()
            note(int(generator.get_next_tokens()[0]))

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        generator = self._generator(prompts, n_new)
        steps = []
        for _ in range(n_new):
            generator.generate_next_token()
            steps.append(generator.get_next_tokens().tolist())
        return [list(row) for row in zip(*steps, strict=True)]

    def _generator(self, prompts: list[list[int]], n_new: int) -> onnxruntime_genai.Generator:
        parameters = onnxruntime_genai.GeneratorParams(self.model)
        n = len(prompts[0]) + n_new
        parameters.set_search_options(batch_size=len(prompts), max_length=n, min_length=n, do_sample=False)
        generator = onnxruntime_genai.Generator(self.model, parameters)
        generator.append_tokens(np.array(prompts, np.int32))
        return generator
