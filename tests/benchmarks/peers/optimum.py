"""optimum on onnxruntime: its own export, fp32 or after `quantize_dynamic`."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime
import torch
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForCausalLM

from . import transformers


def convert(source: Path, folder: Path, precision: str) -> None:
    """The export of `source`, a checkpoint; for int8 `source` is that export."""
    if precision == "fp32":
        # as optimum alone exports: where accelerate is installed, too, post-processing shares the embedding with the
        # output layer, which `quantize_dynamic` then leaves in fp32, dequantized at every step: half the speed
        skipped = {"do_validation": False, "no_post_process": True}
        main_export(str(source), output=folder, task="text-generation-with-past", **skipped)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.onnx*"))
    quantize_dynamic(source / "model.onnx", folder / "model.onnx", weight_type=QuantType.QInt8)


class Peer(transformers.Peer):
    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        self.model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
