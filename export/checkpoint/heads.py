"""Which head a checkpoint has after its last layer, and errors for heads that are not built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from export.checkpoint import weights
from runtime.graph.architecture import GPT
from runtime.graph.head import CLASSIFIERS

_NOT_BUILT = {
    "GPT2DoubleHeadsModel": "a head for multiple choice beside the language model",
    "OpenAIGPTDoubleHeadsModel": "a head for multiple choice beside the language model",
    "GPT2ForQuestionAnswering": "a head for question answering",
}
"""transformers' other classes of GPT-2 and GPT, and their heads."""


def with_head(folder: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json, its `architectures` found by the weights where they name no class with a head.

    Raises ValueError, naming the head, for one that is not built.
    """
    architectures = raw.get("architectures")
    named = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    for name in named:
        if name in _NOT_BUILT:
            raise ValueError(
                f"{folder} is a {name}: {_NOT_BUILT[name]} is not built here, and would be lost. {_cure(folder, raw)}"
            )
    if any(name in CLASSIFIERS or "LMHead" in name for name in named):
        return dict(raw)
    found = _by_weights(folder, raw)
    return {**raw, "architectures": [found]} if found else dict(raw)


def _by_weights(folder: Path, raw: Mapping[str, Any]) -> str | None:
    """transformers' class of a classifier, by the names of its tensors; None for other models."""
    names = {name.removeprefix("transformer.") for name in _names(folder)}
    if "score.weight" in names:
        return "OpenAIGPTForSequenceClassification" if raw.get("model_type") == GPT else "GPT2ForSequenceClassification"
    return "GPT2ForTokenClassification" if "classifier.weight" in names and raw.get("model_type") != GPT else None


def _names(folder: Path) -> set[str]:
    """The names of all tensors; empty where the weights are missing or damaged, which is found out later."""
    names: set[str] = set()
    try:
        for path in weights.weight_files(folder):
            with safe_open(path, framework="np") as handle:
                names |= set(handle.keys())
    except (OSError, ValueError, SafetensorError):
        return set()
    return names


def _cure(folder: Path, raw: Mapping[str, Any]) -> str:
    kind = "OpenAIGPTLMHeadModel" if raw.get("model_type") == GPT else "GPT2LMHeadModel"
    return (
        f'This writes the language model alone: python -c "from transformers import {kind} as M; '
        f"M.from_pretrained('{folder}').save_pretrained('DIR')\""
    )
