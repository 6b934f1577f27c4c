"""How much disk and memory a build needs, compared with what is free before the work begins."""

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
from runtime.model.memory import cache_bytes

# Fitted to builds measured on Linux x86-64 with onnxruntime 1.32 and torch 2.13, anonymous memory at its peak, without
# verification and with it against the fused graph: int8 gpt2 0.51 GB both, distilgpt2 0.47 both; fp32 gpt2 0.64 and
# 0.83; int8 gpt2 without calibration 0.27; random:gpt2 0.56, gpt2-large 1.47. What is computed here is up to 20 % more.
BASE_BYTES = 80e6  # Python and its libraries
PASS_BYTES = 200e6  # logits and activations of a pass while verifying
# bytes in memory for a byte of the model's files
LOADED = {"fp32": 1.22, "int8": 1.294, "int4": 1.3}
# optimum's exporter, each measured once: gpt2 (0.50 GB of weights) 2.40 GB, distilgpt2 (0.33) 1.87
TORCH_BYTES, TORCH_COPIES = 700e6, 3.4
SPLIT_COPIES = 1.25  # of an export above PROTOBUF_BYTES: gpt2-large (3.10) 4.42 GB, gpt2-xl (6.23) 7.42
PROTOBUF_BYTES = 2e9  # larger exports are written twice: as torch left them, then in one file
BYTES_PER_TOKEN = 3  # of UTF-8, fewer than English has (4) so that the estimate errs upwards
SCALE_BYTES, INT4_BYTES = 4, 0.5
MOMENT_BYTES = 4 * 8  # fp64: they, those of the layer's other products, inverted and factored
SAMPLES = 4  # of the inputs of the products of a layer
ACTIVATION_BYTES = 3 * 4 + 8  # read, before and after the activation, and as fp64


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes that a build takes at its peak."""

    disk: float  # on the output's file system, temporary files included, the new model too
    memory: float  # anonymous: pages of mapped files can be evicted

    def check(self, output: Path, cure: str) -> str:
        """Compare with what is free; returns the line that says both. `cure`: what needs less memory.

        Raises OSError for too little disk, ValueError for too little memory. Memory is not checked where the system
        does not tell.
        """
        free, memory = free_disk(output), free_memory()
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
    """Needs of a build; `n_text_bytes`: of the evaluation text as UTF-8."""
    return Needs(_disk(config, options, n_text_bytes), _memory(config, options))


def _disk(config: Config, options: BuildOptions, n_text_bytes: int) -> float:
    weights, output_layer = _parameters(config) * 4, config.vocab_size * config.n_embd * 4
    kept = weights if options.is_random else 0
    exporting = 0.0
    if options.needs_reference:
        reference = weights if options.no_reference else weights + output_layer  # torch unties the two
        is_split = not options.no_reference and reference > PROTOBUF_BYTES
        exporting = kept + reference * (2 if is_split else 1)
        kept += reference
    if options.verify != "none":
        kept += math.ceil(n_text_bytes / BYTES_PER_TOKEN) * config.vocab_size * 4
    # of int4, rounded products wait for the model to be written
    rounded = model_bytes(config, options) if options.precision == "int4" else 0
    layer = _matrices(config) / config.n_layer * 4
    calibrating = rounded + max(layer, _stored_bytes(config, 1, 0)) if options.calibrates else 0
    return max(exporting, kept + model_bytes(config, options) + rounded * options.calibrates, kept + calibrating)


def _memory(config: Config, options: BuildOptions) -> float:
    weights, largest = _parameters(config) * 4, config.vocab_size * config.n_embd * 4
    running = LOADED[options.precision] * model_bytes(config, options) + cache_bytes(config, config.n_positions, 1)
    stages = [largest * 1.25, running]  # quantizing, golden outputs
    if options.is_random:
        stages.append(min(weights, SHARD_BYTES + largest))
    if options.calibrates:
        stages.append(_measuring(config, options))
        if not options.calibration_text:
            stages.append(_writing(config, options))
    if options.verify != "none":
        stages.append(running + PASS_BYTES)
    if options.needs_reference and not options.no_reference:
        copies = SPLIT_COPIES if weights + largest > PROTOBUF_BYTES else TORCH_COPIES  # torch unties the two
        stages.append(TORCH_BYTES + copies * weights)
    return BASE_BYTES + max(stages)


def _writing(config: Config, options: BuildOptions) -> float:
    """Memory that the model takes while it writes the calibration text, with the dense kernel."""
    length = texts.AMOUNTS[options.precision].length(config.n_positions)
    cache = cache_bytes(config, length, texts.texts_at_once(config, length))
    return LOADED["int8"] * _stored_bytes(config, 1, 0) + cache


def _measuring(config: Config, options: BuildOptions) -> float:
    """Memory that calibration takes for a layer: hidden states, its weights, statistics of what its products read."""
    amount = texts.AMOUNTS[options.precision]
    length, width = amount.length(config.n_positions), max(config.n_embd, config.inner_size)
    hidden = amount.n_tokens * config.n_embd * 4
    weights = 2 * _matrices(config) / config.n_layer * 4
    attention = config.n_head * length**2 * 4  # a number for each pair of tokens
    moments = MOMENT_BYTES * width**2 if options.precision == "int4" else 0
    sample = SAMPLES * inputs.SAMPLE_ROWS * width * 4
    return hidden + weights + attention + length * ACTIVATION_BYTES * width + moments + sample


def model_bytes(config: Config, options: BuildOptions) -> float:
    """Size of the model's weights as they are stored, with the usual kernel throughout."""
    if options.precision == "fp32":
        return _parameters(config) * 4
    if options.block_size is None:
        return _stored_bytes(config, 1, 0) + _columns(config) * SCALE_BYTES
    scale = SCALE_BYTES / options.block_size
    return _stored_bytes(config, INT4_BYTES if options.precision == "int4" else 1, scale)


def _stored_bytes(config: Config, of_weight: float, scale: float) -> float:
    """`of_weight`: bytes of one weight of a layer; `scale`: bytes of scales for each weight."""
    matrices = _matrices(config)
    embedding = config.vocab_size * config.n_embd * (1 if config.tie_word_embeddings else 2)
    rest = (_parameters(config) - matrices - embedding) * 4
    return rest + embedding * (1 + scale) + matrices * (of_weight + scale)


def _columns(config: Config) -> int:
    """Of all products."""
    width, inner = config.n_embd, config.inner_size
    return config.n_layer * (3 * width + width + inner + width) + config.vocab_size


def _parameters(config: Config) -> int:
    return sum(math.prod(shape) for shape in config.tensor_shapes().values())


def _matrices(config: Config) -> int:
    shapes = config.tensor_shapes()
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("h.") and len(shape) == 2)


def free_disk(output: Path) -> int:
    """Bytes free on the file system that `output` is on, or will be."""
    return shutil.disk_usage(next(folder for folder in (output, *output.parents) if folder.exists())).free


def free_memory() -> int | None:
    """Bytes: available on Linux and Windows; of the whole machine on macOS, which does not tell; else None."""
    try:
        if sys.platform == "darwin":
            told = subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=True)
            return int(told.stdout)
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
