"""What genai_config.json says of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.checkpoint.config import Config
from export.folder.genai_config import genai_config

XL = Config(n_embd=1600, n_layer=48, n_head=25)


def test_sizes_are_the_checkpoints() -> None:
    model = genai_config(XL)["model"]
    assert (model["context_length"], model["vocab_size"]) == (1024, 50257)
    sizes = {"hidden_size": 1600, "head_size": 64, "num_hidden_layers": 48}
    heads = {"num_attention_heads": 25, "num_key_value_heads": 25}
    assert sizes.items() | heads.items() <= {k: v for k, v in model["decoder"].items() if isinstance(v, int)}.items()


def test_names_are_the_graphs(demo_fp32_folder: Path) -> None:
    graph = onnx.load(demo_fp32_folder / "model.onnx", load_external_data=False).graph
    decoder = genai_config(Config(n_layer=6))["model"]["decoder"]
    for names, values in ((decoder["inputs"], graph.input), (decoder["outputs"], graph.output)):
        said = {name.replace("%d", str(layer)) for name in names.values() for layer in range(6)}
        ours = {"num_logits_to_keep", "num_hidden_to_keep", "last_hidden_state"}
        assert said | ours >= {value.name for value in values} >= said


@pytest.mark.parametrize(
    ("eos", "said", "pad"),
    [(50256, 50256, 50256), ([7, 8], [7, 8], 7), ([7, 60000], 7, 7), (None, None, 0), (60000, None, 0), (0, 0, 0)],
)
def test_ends_are_within_the_vocabulary(eos: int | list[int] | None, said: Any, pad: int) -> None:
    model = genai_config(dataclasses.replace(XL, bos_token_id=60000, eos_token_id=eos))["model"]
    assert model["pad_token_id"] == pad
    assert model.get("eos_token_id") == said
    assert "bos_token_id" not in model
    json.dumps(model)
