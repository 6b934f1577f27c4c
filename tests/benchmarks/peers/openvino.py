"""OpenVINO GenAI, int8: https://github.com/openvinotoolkit/openvino.genai."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np


def convert(source: Path, folder: Path) -> None:
    """As `optimum-cli export openvino --weight-format int8` does."""
    sys.modules["torchvision"] = None  # its need, not ours; beside another build of torch its import fails
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    model = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, quantization_config=OVWeightQuantizationConfig(bits=8)
    )
    model.save_pretrained(folder)


class Peer:
    def __init__(self, folder: Path, threads: int) -> None:
        import openvino_genai

        self.folder, self.threads = folder, threads
        self.genai = openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)
        self.request: object = None

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        class Streamer(self.genai.StreamerBase):
            def write(self, token: int | list[int]) -> object:
                for id_ in [token] if isinstance(token, int) else token:
                    note(id_)
                return peer.genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        peer = self
        self._generate([prompt], n_new, Streamer())

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        return self._generate(prompts, n_new)

    def logits(self, ids: list[int]) -> np.ndarray:
        """The pipeline keeps the logits to itself: the same model in OpenVINO's runtime, with its defaults too."""
        import openvino

        if self.request is None:
            compiled = openvino.Core().compile_model(
                self.folder / "openvino_model.xml", "CPU", {"INFERENCE_NUM_THREADS": self.threads}
            )
            self.request = compiled.create_infer_request()
        self.request.reset_state()
        row = np.array([ids], np.int64)
        inputs = {"input_ids": row, "attention_mask": np.ones_like(row), "beam_idx": np.zeros(1, np.int32)}
        if any("position_ids" in each.names for each in self.request.model_inputs):
            inputs["position_ids"] = np.arange(len(ids), dtype=np.int64)[None]
        return np.array(self.request.infer(inputs)["logits"][0])

    def _generate(self, prompts: list[list[int]], n_new: int, streamer: object = None) -> list[list[int]]:
        import openvino

        config = self.genai.GenerationConfig(max_new_tokens=n_new, min_new_tokens=n_new, ignore_eos=True)
        ids = np.array(prompts, np.int64)
        inputs = self.genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return self.pipeline.generate(inputs, config, streamer).tokens
