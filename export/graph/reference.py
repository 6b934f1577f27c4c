"""The reference: optimum's own fp32 ONNX export with past-key-values, made from the same checkpoint."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

from export import compatibility

MISSING = (
    "the reference needs optimum, which is not installed: pip install -e '.[export]', "
    "or build with --no-reference (the model is then verified against this project's own fp32 graph)"
)
FAILED = (
    "optimum could not export this checkpoint ({reason}); "
    "--no-reference does without it (the model is then verified against this project's own fp32 graph)"
)


def check_installed() -> None:
    """Raise ImportError, saying what to install, unless optimum's exporter is there, with what it requires."""
    try:
        found = all(map(importlib.util.find_spec, ("torch", "transformers", "optimum.exporters.onnx")))
    except ModuleNotFoundError:  # of a package on the way to the last
        found = False
    if not found:
        raise ModuleNotFoundError(MISSING)
    compatibility.check_reference()


def export_reference(checkpoint: Path, folder: Path) -> None:
    """Export with optimum (`text-generation-with-past`); `folder` becomes a model folder that the runtime opens.

    Raises ValueError, saying how to do without, for whatever fails inside optimum.
    """
    try:
        _export(checkpoint, folder)
    except Exception as error:  # torch, transformers, optimum and onnx raise anything
        if isinstance(error, OSError) and error.errno is not None:  # this machine's own, like a full disk
            raise
        raise ValueError(FAILED.format(reason=_reason(error))) from error


def _export(checkpoint: Path, folder: Path) -> None:
    """What optimum's `main_export` does, but for the attention: it would take the default one for any checkpoint."""
    from optimum.exporters.onnx import onnx_export_from_model  # these import torch: only here
    from transformers import AutoConfig, AutoModelForCausalLM

    for library in ("optimum", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    config = AutoConfig.from_pretrained(checkpoint)
    # transformers' default, sdpa, ignores both of these
    is_plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    attention = "sdpa" if is_plain else "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's tracer warns about every branch on a shape
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32", attn_implementation=attention)
        # no validation: the fused graph is compared with this one, and a wrong export does not pass that;
        # no post-processing: it would store wte once, only where accelerate is installed, in twice the memory
        skipped = {"do_validation": False, "no_post_process": True}
        onnx_export_from_model(model, output=folder, task="text-generation-with-past", **skipped)


def _reason(error: BaseException) -> str:
    """Every message, down to what was first: transformers' own often says only that something could not be imported."""
    told = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return told if error.__cause__ is None else f"{told}; caused by {_reason(error.__cause__)}"
