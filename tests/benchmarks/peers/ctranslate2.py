"""CTranslate2, int8: https://github.com/OpenNMT/CTranslate2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import ctranslate2
import numpy as np

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


def convert(source: Path, folder: Path, precision: str) -> None:
    """The same spec as CTranslate2's own loader of GPT-2 makes, which wants torch."""
    from .checkpoint import Checkpoint

    checkpoint = Checkpoint(source)
    config = checkpoint.config
    spec = ctranslate2.specs.TransformerDecoderModelSpec.from_config(
        config["n_layer"], config["n_head"], pre_norm=True, activation=ctranslate2.specs.Activation.GELUTanh
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = checkpoint["wte.weight"]
    decoder.position_encodings.encodings = checkpoint["wpe.weight"]
    _set(decoder.layer_norm, checkpoint, "ln_f")
    for index, layer in enumerate(decoder.layer):
        _set(layer.self_attention.layer_norm, checkpoint, f"h.{index}.ln_1")
        _set(layer.self_attention.linear[0], checkpoint, f"h.{index}.attn.c_attn")
        _set(layer.self_attention.linear[1], checkpoint, f"h.{index}.attn.c_proj")
        _set(layer.ffn.layer_norm, checkpoint, f"h.{index}.ln_2")
        _set(layer.ffn.linear_0, checkpoint, f"h.{index}.mlp.c_fc")
        _set(layer.ffn.linear_1, checkpoint, f"h.{index}.mlp.c_proj")
    spec.register_vocabulary([str(id_) for id_ in range(config["vocab_size"])])  # a token is its id, written out
    end = str(config["eos_token_id"])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = end
    spec.validate()
    spec.optimize(quantization=precision)
    folder.mkdir()
    spec.save(str(folder))


def _set(spec: object, checkpoint: Checkpoint, name: str) -> None:
    """A norm's scale, or a product's matrix, which GPT-2 stores [in, out]."""
    weight = checkpoint[f"{name}.weight"]
    if weight.ndim == 1:
        spec.gamma, spec.beta = weight, checkpoint[f"{name}.bias"]
    else:
        spec.weight, spec.bias = weight.T.copy(), checkpoint[f"{name}.bias"]


class Peer:
    def __init__(self, folder: Path, threads: int) -> None:
        self.generator = ctranslate2.Generator(str(folder), compute_type="int8", inter_threads=1, intra_threads=threads)

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        self._generate([prompt], n_new, callback=lambda step: note(step.token_id) and False)

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        return [result.sequences_ids[0] for result in self._generate(prompts, n_new)]

    def logits(self, ids: list[int]) -> np.ndarray:
        found = self.generator.forward_batch([[str(id_) for id_ in ids]])
        return np.array(found)[0]

    def _generate(self, prompts: list[list[int]], n_new: int, **options: object) -> list:
        return self.generator.generate_batch(
            [[str(id_) for id_ in prompt] for prompt in prompts],
            max_length=n_new,
            min_length=n_new,
            include_prompt_in_result=False,
            end_token=[],
            **options,
        )
