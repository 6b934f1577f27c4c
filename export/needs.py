"""Estimate how much disk and memory a build needs, and compare it with what is free before the work begins."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import shutil
import subprocess
import sys
from pathlib import Path

from export.arguments import BuildOptions
from export.checkpoint.config import Config
from export.checkpoint.weights import SHARD_BYTES
from export.quantize import inputs, texts
from export.quantize.gptq import ROWS_AT_ONCE
from runtime.graph.kernels import INT8_SHARE
from runtime.model.memory import cache_bytes

# The constants are fitted to the peak of anonymous memory in builds on Linux x86-64 with onnxruntime 1.32 and torch
# 2.13. Without verification, and with verification against the fused graph: int8 gpt2 0.51 GB both, distilgpt2 0.47
# both; fp32 gpt2 0.64 and 0.83; int8 gpt2 without calibration 0.27; random:gpt2 0.56, gpt2-large 1.47. The estimates
# are up to 20 % larger.

# Python and its libraries.
BASE_BYTES = 80e6
# Logits and activations of a pass during verification.
PASS_BYTES = 200e6
# Bytes of memory for each byte of the model's files.
LOADED = {"fp32": 1.22, "int8": 1.294, "int4": 1.3}
# optimum's exporter takes TORCH_BYTES and TORCH_COPIES times the weights. Each was measured once: gpt2 (0.50 GB of
# weights) takes 2.40 GB, distilgpt2 (0.33) 1.87.
TORCH_BYTES = 700e6
TORCH_COPIES = 3.4
# Exports above PROTOBUF_BYTES are written twice, as torch leaves them and then in one file, and take fewer copies in
# memory: gpt2-large (3.10 GB of weights) takes 4.42 GB, gpt2-xl (6.23) 7.42.
PROTOBUF_BYTES = 2e9
SPLIT_COPIES = 1.25
# Bytes of UTF-8 for each token. English has 4; 3 makes the estimate err upwards.
BYTES_PER_TOKEN = 3
SCALE_BYTES = 4
# Of the scales in int4 models.
HALF_SCALE_BYTES = 2
# Of a 4-bit weight, and of the zero point of a block of them.
INT4_BYTES = 0.5
# GPTQ has four fp64 matrices at a time: the moments of a product, those of the layer's others, inverse and factor.
MOMENT_BYTES = 4 * 8
# How many products a layer has; inputs of each are sampled.
SAMPLES = 4
# The widest input of a layer exists in fp32 before and after its activation function and as an output, and in fp64.
ACTIVATION_BYTES = 3 * 4 + 8


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes that a build needs at its peak.

    disk: on the output's file system, for temporary files and the new model. memory: anonymous memory, without pages of
    mapped files, which the system can evict.
    """

    disk: float
    memory: float

    def check(self, output: Path, cure: str) -> str:
        """Compare with what is free; returns a line that states both. cure: which options need less memory.

        Raises OSError for too little disk, ValueError for too little memory. Memory is not checked on systems that do
        not report it.
        """
        free = free_disk(output)
        memory = free_memory()
        if self.disk > free:
            raise OSError(
                f"not enough disk: the build needs about {_gb(self.disk)} and {_gb(free)} is free where {output} goes; "
                "free some space, name an --output on another disk, or verify on a shorter --eval-text"
            )
        if memory is not None and self.memory > memory:
            raise ValueError(
                f"not enough memory: the build needs about {_gb(self.memory)} and {_gb(memory)} is free; end other "
                f"programs{cure}"
            )
        known = f"{_gb(free)} and {_gb(memory)} are free" if memory is not None else f"{_gb(free)} of disk is free"
        return f"needs about {_gb(self.disk)} of disk and {_gb(self.memory)} of memory; {known}"


def estimate(config: Config, options: BuildOptions, n_text_bytes: int) -> Needs:
    """The needs of a build. n_text_bytes: the size of the evaluation text in UTF-8."""
    return Needs(_disk(config, options, n_text_bytes), _memory(config, options))


def _disk(config: Config, options: BuildOptions, n_text_bytes: int) -> float:
    weights = _parameters(config) * 4
    output_layer = config.vocab_size * config.n_embd * 4
    kept = weights if options.is_random else 0
    exporting = 0.0
    if options.needs_reference:
        # torch's export stores the output layer beside the embeddings, even if the two are one matrix.
        reference = weights if options.no_reference else weights + output_layer
        is_split = not options.no_reference and reference > PROTOBUF_BYTES
        exporting = kept + reference * (2 if is_split else 1)
        kept += reference
    if options.verify != "none" and config.head is None:
        kept += math.ceil(n_text_bytes / BYTES_PER_TOKEN) * config.vocab_size * 4
    # At int4 the rounded products are kept in files until the model is written.
    rounded = model_bytes(config, options) if options.precision == "int4" else 0
    layer = _matrices(config) / config.n_layer * 4
    calibrating = rounded + max(layer, _stored_bytes(config, 1, 1)) if options.calibrates else 0
    return max(exporting, kept + model_bytes(config, options) + rounded * options.calibrates, kept + calibrating)


def _memory(config: Config, options: BuildOptions) -> float:
    weights = _parameters(config) * 4
    largest = config.vocab_size * config.n_embd * 4
    running = LOADED[options.precision] * model_bytes(config, options) + cache_bytes(config, config.n_positions, 1)
    # Quantizing, and recording golden outputs.
    stages = [largest * 1.25, running]
    if options.is_random:
        stages.append(min(weights, SHARD_BYTES + largest))
    if options.calibrates:
        stages.append(_measuring(config, options))
        if options.precision == "int4" and config.head is None:
            stages.append(_rounding_output(config))
        if not options.calibration_text and config.head is None:
            stages.append(_writing(config, options))
    if options.verify != "none":
        stages.append(running + PASS_BYTES)
    if options.needs_reference and not options.no_reference:
        copies = SPLIT_COPIES if weights + largest > PROTOBUF_BYTES else TORCH_COPIES
        stages.append(TORCH_BYTES + copies * weights)
    return BASE_BYTES + max(stages)


def _writing(config: Config, options: BuildOptions) -> float:
    """Memory for writing the calibration text, with the dense kernel."""
    length = texts.AMOUNTS[options.precision].length(config.n_positions)
    cache = cache_bytes(config, length, texts.texts_at_once(config, length))
    return LOADED["int8"] * _stored_bytes(config, 1, 1) + cache


def _measuring(config: Config, options: BuildOptions) -> float:
    """Memory for calibrating a layer: hidden states, the layer's weights, statistics of the inputs of its products."""
    amount = texts.AMOUNTS[options.precision]
    length = amount.length(config.n_positions)
    width = max(config.n_embd, config.inner_size)
    hidden = amount.n_tokens * config.n_embd * 4
    weights = 2 * _matrices(config) / config.n_layer * 4
    # Attention weights: one for each pair of tokens.
    attention = config.n_head * length**2 * 4
    moments = MOMENT_BYTES * width**2 if options.precision == "int4" else 0
    sample = SAMPLES * inputs.SAMPLE_ROWS * width * 4
    return hidden + weights + attention + length * ACTIVATION_BYTES * width + moments + sample


def _rounding_output(config: Config) -> float:
    """Memory for rounding the output layer with GPTQ: hidden states, the matrix, and its values."""
    hidden = texts.AMOUNTS["int4"].n_tokens * config.n_embd * 4
    matrix = config.vocab_size * config.n_embd
    temporary = 4 * ROWS_AT_ONCE * config.n_embd * 4
    return hidden + matrix * (4 + 2) + temporary + MOMENT_BYTES * config.n_embd**2


def model_bytes(config: Config, options: BuildOptions) -> float:
    """The size of the model's stored weights, if every product has the usual kernel."""
    if options.precision == "fp32":
        return _parameters(config) * 4
    if options.block_size is None:
        return _stored_bytes(config, 1, 1) + _columns(config) * SCALE_BYTES
    if options.precision == "int8":
        of_weight = 1 + SCALE_BYTES / options.block_size
        return _stored_bytes(config, of_weight, of_weight)
    of_int4 = INT4_BYTES + (HALF_SCALE_BYTES + INT4_BYTES) / options.block_size
    of_int8 = 1 + HALF_SCALE_BYTES / options.block_size
    return _stored_bytes(config, of_int4, of_int4 + (of_int8 - of_int4) / INT8_SHARE)


def _stored_bytes(config: Config, of_weight: float, of_vocabulary: float) -> float:
    """The size of all weights.

    of_weight, of_vocabulary: bytes of a weight, and of its share of a scale, in a product of a layer and in a matrix of
    the vocabulary.
    """
    matrices = _matrices(config)
    vocabulary = config.vocab_size * config.n_embd * (1 if config.tie_word_embeddings else 2)
    rest = (_parameters(config) - matrices - vocabulary) * 4
    return rest + vocabulary * of_vocabulary + matrices * of_weight


def _columns(config: Config) -> int:
    """The number of output columns of all products, the output layer included."""
    width = config.n_embd
    inner = config.inner_size
    return config.n_layer * (3 * width + width + inner + width) + config.vocab_size


def _parameters(config: Config) -> int:
    """The number of weights of the model."""
    return sum(math.prod(shape) for shape in config.tensor_shapes().values())


def _matrices(config: Config) -> int:
    """The number of weights in the products of all layers."""
    shapes = config.tensor_shapes()
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("h.") and len(shape) == 2)


def free_disk(output: Path) -> int:
    """Free bytes on the file system that `output` is on, or will be on."""
    return shutil.disk_usage(next(folder for folder in (output, *output.parents) if folder.exists())).free


def free_memory() -> int | None:
    """Available memory in bytes on Linux and Windows, all memory on macOS, which does not report it; else None."""
    try:
        if sys.platform == "darwin":
            answer = subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=True)
            return int(answer.stdout)
        if sys.platform == "win32":
            return _windows_memory()
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration, AttributeError, subprocess.CalledProcessError):
        return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        *((f"other_{index}", ctypes.c_uint64) for index in range(5)),
    ]


def _windows_memory() -> int | None:
    status = _MemoryStatus()
    status.length = ctypes.sizeof(status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined,unused-ignore]
        return None
    return int(status.available)


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
