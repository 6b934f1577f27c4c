"""transformers, fp32, on torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel
from transformers.generation.streamers import BaseStreamer


class Notes(BaseStreamer):
    """Passes on each id but the prompt's as it is made."""

    def __init__(self, note: Callable[[int], object]) -> None:
        self.note, self.is_prompt = note, True

    def put(self, value: torch.Tensor) -> None:
        if not self.is_prompt:
            self.note(int(value))
        self.is_prompt = False

    def end(self) -> None:
        pass


class Peer:
    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        self._generate([prompt], n_new, streamer=Notes(note))

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        return self._generate(prompts, n_new)[:, len(prompts[0]) :].tolist()

    def _generate(self, prompts: list[list[int]], n_new: int, **options: object) -> torch.Tensor:
        ids = torch.tensor(prompts)
        lengths = {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            return self.model.generate(ids, attention_mask=torch.ones_like(ids), **lengths, **options)

    def logits(self, ids: list[int]) -> np.ndarray:
        row = torch.tensor([ids])
        with torch.inference_mode():
            return self.model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].numpy()
