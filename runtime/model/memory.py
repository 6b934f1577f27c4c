"""The memory that a model and its batches take, known before they take it.

The constants hold for onnxruntime's CPU kernels on x86-64 Linux; `python -m tests.trials.memory --json FILE`
compares the estimates with what processes take, and keeps each stage, from which to set them anew.
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
from runtime.model import integrity
from runtime.model.config import Config, read_config
from runtime.model.kv_cache import Cache
from runtime.model.prefill import PREFILL_STEP

PROCESS = 56_500_000  # the interpreter with numpy, onnxruntime and tokenizers imported
LIBRARIES = 10_500_000  # what onnxruntime touches of its code, and of its own, from the first session on
PER_TOKENIZER_BYTE = 9.5  # of tokenizer.json: its tables, opened
PER_EMBEDDING = 0.7  # of a quantized embedding: pages of the file that stay, and as much more during the load
PER_WIDTH = 30  # floats for each position of a pass and each of n_embd: qkv, the wider layer, sums, int8 copies
FLOAT = 4
_FLOATS_FROM = 3.0  # bytes for each weight; with fewer the graph is quantized


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of resident memory, by what takes them."""

    process: int  # the interpreter and its libraries, which other code in the process shares
    tokenizer: int
    weights: int  # once loaded
    loading: int  # more, while the weights are rearranged for the processor
    cache: int  # keys and values of the batch, every position filled
    activations: int  # of the largest pass: a chunk of a prompt at the end of the context

    @property
    def batch(self) -> int:
        """What a batch adds to a loaded model."""
        return self.cache + self.activations

    @property
    def total(self) -> int:
        """The peak: the process, the model, and either its loading or the batch."""
        return self.process + self.tokenizer + self.weights + max(self.loading, self.batch)


def estimate(folder: str | os.PathLike[str], *, context: int | None = None, rows: int = 1) -> Estimate:
    """What loading a model folder and decoding a batch of it will take, before it does; reads sizes alone.

    context: positions of each row, prompt and continuation; None is the model's n_positions.
    rows: how many decode together; `batch_size` rows at most.
    Within 15 % of the peak of resident memory of a process that does nothing else. Scoring a text takes
    256 * vocab_size * 4 bytes more; a plain export, which copies its cache at each step, twice the cache.
    Raises FileNotFoundError or ValueError for a folder without config.json or weights, or a context that the model
    has not; TypeError for what is no count.

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
    has_tokenizer = integrity.has_tokenizer(os.listdir(place))  # noqa: PTH208  names alone
    if not weights or (has_tokenizer and not tokenizer.is_file()):
        raise FileNotFoundError(
            f"{place} has no {'tokenizer.json' if weights else 'model.onnx'}: it is no model folder"
        )
    embedding = config.vocab_size * config.n_embd  # wte, which the embedding and the output layer share
    is_quantized = weights < _FLOATS_FROM * _n_weights(config)
    quantized = int(PER_EMBEDDING * embedding)
    return Estimate(
        process=PROCESS + LIBRARIES,
        tokenizer=int(PER_TOKENIZER_BYTE * tokenizer.stat().st_size) if has_tokenizer else 0,
        # the output layer has a rearranged copy; the embedding reads the original
        weights=weights + (quantized if is_quantized else FLOAT * embedding),
        loading=quantized if is_quantized else 0,
        cache=cache_bytes(config, context, check_count("rows", rows)),
        activations=activation_bytes(config, context, rows),
    )


class CachedModel(Protocol):
    """What the size of keys and values follows from, of a checkpoint or of a model folder."""

    @property
    def n_layer(self) -> int:
        """Layers."""

    @property
    def n_embd(self) -> int:
        """Width."""


def cache_bytes(config: CachedModel, context: int, rows: int) -> int:
    """Keys and values, fp32, of `rows` of `context` positions."""
    return 2 * FLOAT * config.n_layer * config.n_embd * context * rows


def activation_bytes(config: Config, context: int, rows: int) -> int:
    """The largest pass of a batch: a chunk of one row's prompt, or a step of all rows, and the logits."""
    n_ids = min(PREFILL_STEP, context)
    scores = config.n_head * n_ids * context
    return int(FLOAT * (scores + PER_WIDTH * n_ids * config.n_embd + rows * config.vocab_size))


def _n_weights(config: Config) -> int:
    return config.n_embd * (config.vocab_size + config.n_positions + 12 * config.n_layer * config.n_embd)


class Budget:
    """What the open batches of a model may take together. Threads may share it."""

    def __init__(self, folder: Path, config: Config, max_memory: int) -> None:
        """Raises MemoryError if the model alone passes `max_memory` bytes."""
        needed = estimate(folder, context=1)
        self._folder, self._config, self._max_memory = folder, config, max_memory
        self._taken, self._lock = needed.process + needed.tokenizer + needed.weights, Lock()
        # Sizes of caches that are freed. Finalizers run wherever the garbage collector does, so they take no lock:
        # adding to a deque and taking from it need none.
        self._given_back: deque[int] = deque()
        if self._taken + needed.loading > max_memory:
            size = self._taken + needed.loading
            told = f"loading {folder} takes about {size:,} bytes, max_memory is {max_memory:,}"
            raise MemoryBudgetError(told, size, 0, max_memory)

    def take(self, capacity: int, rows: int) -> int:
        """Bytes of a batch, which now count as taken. Raises MemoryError if that passes max_memory."""
        capacity = min(capacity, self._config.n_positions)
        size = cache_bytes(self._config, capacity, rows) + activation_bytes(self._config, capacity, rows)
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
        """Of a batch that could not be made."""
        self._given_back.append(size)

    def until_freed(self, cache: Cache, size: int) -> None:
        """Give the bytes back once nothing refers to the cache."""
        weakref.finalize(cache, self._given_back.append, size).atexit = False
