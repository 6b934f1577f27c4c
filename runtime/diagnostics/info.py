"""Describe a model folder, and whether its build suits this processor."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import onnxruntime

from runtime.hardware.cpu_features import advice, alternative, processor_features, suitable_kernel
from runtime.model.integrity import QUALITY
from runtime.model.model import Model


def describe(folder: Path) -> dict[str, Any]:
    """Facts about a model folder by name, as JSON values.

    Raises the errors of `runtime.load`, and ValueError for a damaged quality.json.

    describe(Path("models/demo-int8"))["precision"]
    """
    with Model(folder) as model:
        config = model.config
        kernel = model.kernel
        is_fused = model.is_fused
        quality = model.read_json(QUALITY) or {}
    weights = sum(path.stat().st_size for path in folder.glob("*.onnx*"))
    suitable = suitable_kernel()
    labels = {} if config.head is None else {"labels": ", ".join(config.head.labels)}
    return {
        "folder": str(folder),
        "precision": quality.get("precision", "unknown: not built by export/build.py"),
        "kernel": kernel or ("none: fp32" if is_fused else "none: a plain ONNX export"),
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "context": config.n_positions,
        "vocabulary": config.vocab_size,
        "megabytes": round(weights / 1e6, 1),
        **labels,
        "loss_percent": quality.get("loss_percent"),
        "processor": platform.processor() or platform.machine(),
        "suited_to": suitable or "unknown",
        "advice": advice(kernel, suitable)
        or alternative(kernel, processor_features())
        or "this build suits this processor",
        "onnxruntime": onnxruntime.__version__,
    }
