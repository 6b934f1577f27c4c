"""Ours."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

import runtime
from runtime.model.prefill import cut, prefill

MOST_LAYERS_VERIFIED = 12  # gpt2; verification of the larger ones takes long, and changes no speed


def convert(
    source: Path,
    folder: Path,
    precision: str,
    kernel: str | None = None,
    activations: str | None = None,
    block_size: str | None = None,
) -> None:
    """Build as a user does: equalized, calibrated on the model's own text and, up to gpt2, verified.

    kernel, activations, block_size: the build's default unless it is said.
    """
    from export import build

    kind = ["--precision", precision, *(["--kernel", kernel] if kernel else [])]
    kind += ["--activations", activations] if activations else []
    kind += ["--block-size", block_size] if block_size else []
    n_layer = json.loads((source / "config.json").read_text(encoding="utf-8"))["n_layer"]
    verify = "quality" if n_layer <= MOST_LAYERS_VERIFIED else "none"
    build.main([str(source), "--no-reference", "--verify", verify, *kind, "--output", str(folder)])


class Peer:
    def __init__(self, folder: Path, threads: int, cache: str | None = None) -> None:
        """cache: "fp32" or "int8", the type of the key-value cache; None: the runtime's default."""
        self.model = runtime.load(folder, threads=threads, cache=cache)

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        cache = self.model.new_cache(len(prompt) + n_new)
        id_ = int(prefill(cache, prompt).argmax())
        note(id_)
        for _ in range(n_new - 1):
            id_ = int(cache.step([id_])[0].argmax())
            note(id_)

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        cache = self.model.new_cache(len(prompts[0]) + n_new, len(prompts))
        rows = [[int(prefill(cache, prompt, row).argmax())] for row, prompt in enumerate(prompts)]
        for _ in range(n_new - 1):
            for row, id_ in zip(rows, cache.step([row[-1] for row in rows]).argmax(axis=-1).tolist(), strict=True):
                row.append(id_)
        return rows

    def logits(self, ids: list[int]) -> np.ndarray:
        cache = self.model.new_cache(len(ids))
        return np.concatenate([cache.extend(part, keep=len(part)) for part in cut(ids)])
