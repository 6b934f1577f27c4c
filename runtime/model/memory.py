"""Estimate the memory of a model and its batches before they are loaded, and keep batches within a budget.

The constants hold for onnxruntime's CPU kernels on x86-64 Linux. `python -m tests.trials.memory --json FILE` compares
the estimates with measured processes, and records each stage, from which new constants can be derived.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections import deque
from pathlib import Path
from typing import Protocol

from runtime._checks import check_count
from runtime._lock import Lock
from runtime.errors import MemoryBudgetError
from runtime.graph.attention import DTYPES, N_GROUPS, CacheType
from runtime.model import integrity
from runtime.model.cache_type import check_cache_type, choose_cache_type
from runtime.model.config import Config, read_config
from runtime.model.kv_cache import Cache
from runtime.model.prefill import PREFILL_STEP

# The interpreter with numpy, onnxruntime and tokenizers imported.
PROCESS = 57_500_000
# Code and data of onnxruntime that are loaded with the first session.
LIBRARIES = 21_000_000
# The tables of an open tokenizer, for each byte of tokenizer.json.
PER_TOKENIZER_BYTE = 9.5
# For each weight of a quantized embedding: rows that stay in memory for the graph of an fp32 cache. An int8 cache takes
# them from the file; there as much is needed during the load, for the matrix of the output layer in another order.
PER_EMBEDDING = 0.9
# Floats for each position of a pass and each channel: qkv, the feed-forward layer, sums, int8 copies.
PER_WIDTH = 30
FLOAT = 4  # bytes
# A graph with fewer bytes for each weight is quantized.
_FLOATS_FROM = 3.0
# A graph with fewer bytes for each weight is int4 with scales in fp16. onnxruntime computes fp32 scales and sums of
# blocks from them, so many bytes for each weight.
_HALF_SCALES_BELOW = 0.78
PER_INT4 = 0.33


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of resident memory, by use.

    process: the interpreter and its libraries, which other code in the process shares. weights: once they are loaded.
    loading: extra memory while the weights are rearranged for the processor. cache: keys and values of a batch with all
    positions filled. activations: of the largest pass, a chunk of a prompt at the end of the context.
    """

    process: int
    tokenizer: int
    weights: int
    loading: int
    cache: int
    activations: int

    @property
    def batch(self) -> int:
        """The memory that a batch adds to a loaded model."""
        return self.cache + self.activations

    @property
    def total(self) -> int:
        """The peak: the process, the model, and either its loading or the batch."""
        return self.process + self.tokenizer + self.weights + max(self.loading, self.batch)


def estimate(
    folder: str | os.PathLike[str], *, context: int | None = None, rows: int = 1, cache: CacheType | None = None
) -> Estimate:
    """Estimate the memory for loading a model folder and decoding a batch, from config.json and the sizes of its files.

    context: positions of each row, for prompt and continuation; None is the model's n_positions.
    rows: how many rows decode together; at most `batch_size` do.
    cache: the type of keys and values, as in `load`.
    The estimate is within 15 % of the peak of resident memory of a process that does nothing else. Scoring a text takes
    256 * vocab_size * 4 bytes more; a plain export, which copies its cache at each step, takes twice the cache.
    Raises FileNotFoundError or ValueError for a folder without config.json or weights, for a context longer than
    n_positions, or for a cache that the folder has no graph for; TypeError for a value that is not a whole number.

    Example:
        >>> estimate = runtime.estimate("models/demo-int8", context=256, rows=4)
        >>> estimate.cache < estimate.total < 150_000_000
        True

    """
    place = Path(folder)
    config = read_config(place)
    context = config.n_positions if context is None else check_count("context", context)
    if context > config.n_positions:
        raise ValueError(f"context is {context}; the model has {config.n_positions} positions")
    weights = sum(path.stat().st_size for path in place.glob("*.onnx*"))
    tokenizer = place / "tokenizer.json"
    names = os.listdir(place)  # noqa: PTH208  names alone
    has_tokenizer = integrity.has_tokenizer(names)
    check_cache_type(cache)
    kind = choose_cache_type(place, names, cache)
    if not weights or (has_tokenizer and not tokenizer.is_file()):
        raise FileNotFoundError(
            f"{place} has no {'tokenizer.json' if weights else 'model.onnx'}: it is no model folder"
        )
    # The embedding and the output layer share wte.
    embedding = config.vocab_size * config.n_embd
    rows_of_embedding = int(PER_EMBEDDING * embedding)
    n_weights = _n_weights(config)
    is_quantized = weights < _FLOATS_FROM * n_weights
    resident = 0 if kind == "int8" else rows_of_embedding
    scales = int(PER_INT4 * n_weights) if weights < _HALF_SCALES_BELOW * n_weights else 0
    return Estimate(
        process=PROCESS + LIBRARIES,
        tokenizer=int(PER_TOKENIZER_BYTE * tokenizer.stat().st_size) if has_tokenizer else 0,
        # The output layer has a rearranged copy, beside the rows of the embedding.
        weights=weights + scales + (resident if is_quantized else FLOAT * embedding),
        loading=rows_of_embedding if is_quantized and kind == "int8" else 0,
        cache=cache_bytes(config, context, check_count("rows", rows), kind),
        activations=activation_bytes(config, context, rows, kind),
    )


class CachedModel(Protocol):
    """The sizes of a checkpoint or a model folder that determine the size of keys and values."""

    @property
    def n_layer(self) -> int:
        """The number of layers."""

    @property
    def n_embd(self) -> int:
        """The width."""


def cache_bytes(config: CachedModel, context: int, rows: int, cache: CacheType = "fp32") -> int:
    """Bytes of the keys and values of `rows` rows of `context` positions."""
    return 2 * DTYPES[cache].itemsize * config.n_layer * config.n_embd * context * rows


def activation_bytes(config: Config, context: int, rows: int, cache: CacheType = "fp32") -> int:
    """Bytes of the largest pass of a batch: a chunk of one row's prompt, or a step of all rows, and the logits."""
    n_ids = min(PREFILL_STEP, context)
    n_heads = config.n_head
    dequantized = 0
    # Prefill reads an int8 cache as fp32, one group of heads of a layer after the other.
    if cache == "int8":
        n_heads = -(-config.n_head // N_GROUPS)
        dequantized = 2 * n_heads * config.head_dim * context
    scores = n_heads * n_ids * context
    return int(FLOAT * (scores + dequantized + PER_WIDTH * n_ids * config.n_embd + rows * config.vocab_size))


def _n_weights(config: Config) -> int:
    return config.n_embd * (config.vocab_size + config.n_positions + 12 * config.n_layer * config.n_embd)


class Budget:
    """The memory that a model and its open batches may take together. Threads may share it."""

    def __init__(self, folder: Path, config: Config, max_memory: int, cache: CacheType) -> None:
        """Raises MemoryError if the model alone takes more than `max_memory` bytes."""
        needed = estimate(folder, context=1, cache=cache)
        self._cache = cache
        self._folder = folder
        self._config = config
        self._max_memory = max_memory
        self._taken = needed.process + needed.tokenizer + needed.weights
        self._lock = Lock()
        # Sizes of caches that were freed. Finalizers run at any time, so they must not wait for the lock; a deque needs
        # none.
        self._given_back: deque[int] = deque()
        if self._taken + needed.loading > max_memory:
            size = self._taken + needed.loading
            problem = f"loading {folder} takes about {size:,} bytes, max_memory is {max_memory:,}"
            raise MemoryBudgetError(problem, size, 0, max_memory)

    def take(self, capacity: int, rows: int) -> int:
        """Reserve the bytes of a batch, and return how many. Raises MemoryError if they exceed max_memory."""
        capacity = min(capacity, self._config.n_positions)
        size = cache_bytes(self._config, capacity, rows, self._cache)
        size += activation_bytes(self._config, capacity, rows, self._cache)
        with self._lock:
            while self._given_back:
                self._taken -= self._given_back.popleft()
            taken = self._taken
            if taken + size <= self._max_memory:
                self._taken = taken + size
                return size
        raise MemoryBudgetError(
            f"a batch of {rows} x {capacity} positions takes about {size:,} bytes and {taken:,} are taken, max_memory "
            f"is {self._max_memory:,}: ask for fewer rows (batch_size) or less context",
            needed=size,
            taken=taken,
            max_memory=self._max_memory,
        )

    def give_back(self, size: int) -> None:
        """Release the bytes of a batch that could not be made."""
        self._given_back.append(size)

    def until_freed(self, cache: Cache, size: int) -> None:
        """Release the bytes once nothing refers to the cache any more."""
        weakref.finalize(cache, self._given_back.append, size).atexit = False
