"""Weights that are recognized by their SHA-256, and what the model they belong to is recorded to write."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from export.checkpoint.weights import SINGLE
from runtime._json import read_json


@dataclasses.dataclass(frozen=True)
class Known:
    """Published weights."""

    description: str  # in the card and in quality.json
    outputs: Path | None  # recorded greedy continuations and log-probabilities, with their sources


# SHA-256 -> size in bytes of `model.safetensors`, as the hub's own Git LFS pointer of openai-community/gpt2 states
# them (a copy: github.com/Justin21523/edge-deid-studio, models/gpt2, commit 28dccae5cdc1f59c0ccee14363c195c42220f927)
SIZES = {"248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707": 548_105_171}
KNOWN = {
    "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707": Known(
        "OpenAI's own gpt2 weights (SHA-256 verified)", Path(__file__).with_name("openai_gpt2_outputs.json")
    )
}


def recognize(checkpoint: Path) -> Known | None:
    """Which published weights the checkpoint folder holds; None for others. Reads a file of a known size only."""
    path = checkpoint / SINGLE
    if not path.is_file() or path.stat().st_size not in SIZES.values():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return KNOWN.get(digest)


def recorded_outputs(known: Known | None) -> dict[str, Any]:
    """What golden.json says of them: {"openai": records, "openai_scored": records} or nothing."""
    if known is None or known.outputs is None:
        return {}
    outputs = read_json(known.outputs)
    return {"openai": outputs["records"], "openai_scored": outputs["scored"]}
