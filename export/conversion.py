"""A checkpoint becomes a model folder at a precision: the graph, its weights, config and tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from export import folder, graph
from export.arguments import BuildOptions
from export.checkpoint import Checkpoint
from export.quantize import calibration
from export.quantize.dense import DenseInt8
from export.quantize.int4 import Int4
from export.quantize.precision import Float32, Int8, Precision


def make_model(checkpoint: Checkpoint, options: BuildOptions, work: Path) -> None:
    """What ships, in `work / "model"`."""
    if options.block_size is None:
        precision: Precision = DenseInt8() if options.precision == "int8" else Float32()
    elif options.precision == "int8":
        precision = Int8(options.block_size)
    else:
        precision = Int4(
            options.block_size, calibrate(checkpoint, options.block_size, work) if options.calibrates else None
        )
    convert(checkpoint, precision, work / "model")


def calibrate(checkpoint: Checkpoint, block_size: int, work: Path) -> calibration.Calibration:
    """The text is written by this very model, but with each block rounded alone."""
    writer = work / "writer"
    convert(checkpoint, Int4(block_size), writer)
    texts = calibration.write_text(writer)
    shutil.rmtree(writer)
    return calibration.Calibration(checkpoint.config, checkpoint.tensors, texts, work)


def convert(checkpoint: Checkpoint, precision: Precision, target: Path) -> None:
    """Write a new folder: all but checksums, card and recorded outputs."""
    target.mkdir()
    graph.build(checkpoint.config, checkpoint.tensors, precision, target, progress=_layer_progress)
    folder.write_tokenizer_and_config(checkpoint, target)


def _layer_progress(layers: Iterable[int]) -> Iterable[int]:
    bar: Iterable[int] = tqdm(layers, desc="      layers", unit="layer")
    return bar
