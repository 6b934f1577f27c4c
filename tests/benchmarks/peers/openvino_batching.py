"""OpenVINO GenAI's continuous batching: https://github.com/openvinotoolkit/openvino.genai."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from . import openvino as pipeline

CACHE_GB = 1  # keys and values of all rows together; not more than is used is resident
MOST_ROWS = 64


class Peer:
    """Requests are added one by one, and every step decodes all that run; prompts are not kept for later ones."""

    def __init__(self, folder: Path, threads: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_seqs = MOST_ROWS
        scheduler.enable_prefix_caching = False
        self.folder = folder
        self.threads = threads
        self.n_requests = 0
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        self._generate([prompt], n_new, lambda _, id_: note(id_))

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        rows = [list[int]() for _ in prompts]
        self._generate(prompts, n_new, lambda row, id_: rows[row].append(id_))
        return rows

    def logits(self, ids: list[int]) -> np.ndarray:
        """Those of the same folder in OpenVINO's own runtime: the pipeline returns none."""
        peer = pipeline.Peer.__new__(pipeline.Peer)
        peer.folder, peer.threads, peer.request = self.folder, self.threads, None
        return peer.logits(ids)

    def _generate(self, prompts: list[list[int]], n_new: int, note: Callable[[int, int], object]) -> None:
        config = openvino_genai.GenerationConfig(max_new_tokens=n_new, min_new_tokens=n_new, ignore_eos=True)
        handles = []
        for prompt in prompts:
            ids = openvino.Tensor(np.array([prompt], np.int64))
            handles.append(self.pipeline.add_request(self.n_requests, ids, config))
            self.n_requests += 1
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            for row, handle in enumerate(handles):
                if handle.can_read():
                    for output in handle.read().values():
                        for id_ in output.generated_ids:
                            note(row, id_)
