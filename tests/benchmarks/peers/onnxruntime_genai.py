"""onnxruntime-genai on our own model folder: https://github.com/microsoft/onnxruntime-genai."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai


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

    def logits(self, ids: list[int]) -> np.ndarray:
        generator = self._generator([ids], 0)
        return np.array(generator.get_output("logits"))[0]

    def _generator(self, prompts: list[list[int]], n_new: int) -> onnxruntime_genai.Generator:
        parameters = onnxruntime_genai.GeneratorParams(self.model)
        n = len(prompts[0]) + n_new
        parameters.set_search_options(batch_size=len(prompts), max_length=n, min_length=n, do_sample=False)
        generator = onnxruntime_genai.Generator(self.model, parameters)
        generator.append_tokens(np.array(prompts, np.int32))
        return generator
