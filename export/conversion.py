"""Convert a checkpoint to a model folder at a precision: write the graph, its weights, config and tokenizer."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from export.arguments import BuildOptions
from export.checkpoint import tokenizer
from export.checkpoint.checkpoint import Checkpoint
from export.checkpoint.config import Config
from export.folder import folder
from export.graph import graph
from export.graph.graph import Weights
from export.graph.int8_cache import MARGIN, MARGIN_WITHOUT_TEXT, measure_rounding, write_int8_cache_graph
from export.quantize import texts
from export.quantize.calibration import Calibration
from export.quantize.calibration import calibrate as calibrate_products
from export.quantize.equalization import OUTPUT, EqualizedTensors, from_weights
from export.quantize.kernels import DENSE, FP32, Mixed, kernel_of_product, make_kernel, output_kernel
from export.quantize.precision import Precision
from export.verify import labels, own_writing
from export.verify.quality import read_text

N_CACHE_TEXTS = 8
"""How many of the calibration texts the rounding of the int8 cache is measured on."""
RANDOM_TEXT_LENGTH = 512
Kernels = Mapping[str, str]
"""Product -> kernel, for the products whose kernel is not the usual one; the output layer is `OUTPUT`."""


def make_model(
    checkpoint: Checkpoint,
    options: BuildOptions,
    work: Path,
    calibration: Calibration | None,
    upgraded: Kernels,
) -> None:
    """Write the model to the new folder `work / "model"`.

    calibration: None for a model that is not calibrated. upgraded: the products that have another kernel than usual.
    """
    tensors: Weights = checkpoint.tensors
    usual = make_kernel(options.usual_kernel)
    if calibration is not None:
        tensors = EqualizedTensors(checkpoint.config, tensors, calibration.equalizations)
        usual = make_kernel(options.usual_kernel, calibration.rounded, calibration.ranges)
    output = "wte" if checkpoint.config.tie_word_embeddings else "lm_head"
    others = {output if name == OUTPUT else name: make_kernel(kernel) for name, kernel in upgraded.items()}
    convert(checkpoint, Mixed(usual, others), work / "model", tensors)


def add_int8_cache(checkpoint: Checkpoint, calibration: Calibration | None, target: Path) -> None:
    """Write the graph with an int8 key-value cache into a folder whose `model.onnx` is complete.

    Its rounding is measured on the text of calibration, and on random ids, which stand for texts of another kind.
    """
    own = [] if calibration is None else calibration.texts[:N_CACHE_TEXTS].tolist()
    length = min(checkpoint.config.n_positions, RANDOM_TEXT_LENGTH)
    others = np.random.default_rng(0).integers(checkpoint.config.vocab_size, size=(2, length)).tolist()
    margin = MARGIN if own else MARGIN_WITHOUT_TEXT
    write_int8_cache_graph(target, measure_rounding(target, [*own, *others], margin))


def calibrate(checkpoint: Checkpoint, options: BuildOptions, work: Path, text: Path | None) -> Calibration:
    """Choose how each product is equalized, on the user's text or on a text that the model writes.

    A classifier writes none, and is calibrated on half of the text that it is verified on. text: that text. Raises
    ValueError for a text that is too short or not UTF-8, and for a model whose activations overflow fp32.
    """
    ids = calibration_texts(checkpoint, options, work, text)
    only_dense = options.kernel == "dense"
    return calibrate_products(
        checkpoint.config, checkpoint.tensors, ids, options.usual_kernel, work, only_dense=only_dense
    )


def calibration_texts(checkpoint: Checkpoint, options: BuildOptions, work: Path, text: Path | None) -> texts.Ids:
    """The text to calibrate on, cut into texts of equal length: ids [n_texts, n_tokens]."""
    amount = texts.AMOUNTS[options.precision]
    if options.calibration_text is None and text is not None and checkpoint.config.head is not None:
        encode = functools.partial(tokenizer.encode, checkpoint.tokenizer_folder)
        return labels.calibration_ids(text.read_text(encoding="utf-8"), encode, checkpoint.config.n_positions)
    if options.calibration_text is None:
        return write_texts(checkpoint, amount, work)
    ids = read_calibration_text(checkpoint, options.calibration_text)
    return texts.cut_text(ids, checkpoint.config.n_positions, amount)


def read_calibration_text(checkpoint: Checkpoint, path: Path) -> list[int]:
    """Ids of the user's text. Raises ValueError if it is too short, not UTF-8, or not in the model's vocabulary."""
    folder = checkpoint.tokenizer_folder
    content, ids = read_text(path, lambda text: tokenizer.encode(folder, text), texts.LEAST_TOKENS)
    own_writing.check_written(tokenizer.read(folder), content, path, "--calibration-text")
    return ids


def write_texts(checkpoint: Checkpoint, amount: texts.Amount, work: Path) -> texts.Ids:
    """Sample the calibration texts from the model, as dense int8 equalized by an estimate that needs no text."""
    writer = work / "writer"
    estimates = from_weights(checkpoint.config, checkpoint.tensors)
    tensors = EqualizedTensors(checkpoint.config, checkpoint.tensors, estimates)
    convert(checkpoint, make_kernel(DENSE), writer, tensors)
    written = texts.write_texts(writer, amount)
    shutil.rmtree(writer)
    return written


def usual_kernels(config: Config, options: BuildOptions) -> dict[str, str]:
    """The kernel of every product before any is upgraded, the output layer last."""
    matrices = [name for name, shape in config.tensor_shapes().items() if name.startswith("h.") and len(shape) == 2]
    names = [name.removesuffix(".weight") for name in matrices]
    kernels = {name: kernel_of_product(options.usual_kernel, name) for name in names}
    return kernels if config.head is not None else kernels | {OUTPUT: output_kernel(options.usual_kernel)}


def make_fp32(checkpoint: Checkpoint, target: Path) -> None:
    """Write the fused graph in fp32 to a new folder."""
    convert(checkpoint, make_kernel(FP32), target)


def convert(checkpoint: Checkpoint, precision: Precision, target: Path, tensors: Weights | None = None) -> None:
    """Write a new folder: graph, weights, config and tokenizer, but no checksums, card or golden outputs.

    tensors: None takes those of the checkpoint.
    """
    target.mkdir()
    graph.build(checkpoint.config, tensors or checkpoint.tensors, precision, target, progress=_layer_progress)
    folder.write_tokenizer_and_config(checkpoint, target)


def _layer_progress(layers: Iterable[int]) -> Iterable[int]:
    bar: Iterable[int] = tqdm(layers, desc="      layers", unit="layer")
    return bar
