"""Recognize published weights by their SHA-256, and the recorded outputs of their model."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from export.checkpoint.weights import SINGLE
from runtime._json import read_json


@dataclasses.dataclass(frozen=True)
class Known:
    """Published weights.

    description: for the card and quality.json. outputs: a file of recorded greedy continuations and log-probabilities,
    with their sources.
    """

    description: str
    outputs: Path | None


# SHA-256 -> size in bytes of `model.safetensors`, from the hub's Git LFS pointer of openai-community/gpt2 (a copy is in
# github.com/Justin21523/edge-deid-studio, models/gpt2, commit 28dccae5cdc1f59c0ccee14363c195c42220f927).
SIZES = {"248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707": 548_105_171}
KNOWN = {
    "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707": Known(
        "OpenAI's own gpt2 weights (SHA-256 verified)", Path(__file__).with_name("openai_gpt2_outputs.json")
    )
}


def recognize(checkpoint: Path) -> Known | None:
    """The published weights that a checkpoint folder holds; None for others. Only files of a known size are read."""
    path = checkpoint / SINGLE
    if not path.is_file() or path.stat().st_size not in SIZES.values():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return KNOWN.get(digest)


def recorded_outputs(known: Known | None) -> dict[str, Any]:
    """The part of golden.json for these weights: {"openai": records, "openai_scored": records}, or {}."""
    if known is None or known.outputs is None:
        return {}
    outputs = read_json(known.outputs)
    return {"openai": outputs["records"], "openai_scored": outputs["scored"]}
