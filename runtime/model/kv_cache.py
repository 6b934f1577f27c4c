"""The key-value cache, and the passes through the model that extend it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.graph.attention import DTYPES, CacheType
from runtime.graph.gpt2 import HIDDEN, KEEP_HIDDEN, TOKEN_EMBEDDINGS
from runtime.model.config import Config
from runtime.model.embedding_rows import Embedding

Logits = NDArray[np.float32]
KeysValues = NDArray[np.float32 | np.int8]
"""Keys and values of n tokens, [n_layer, 2, n_head, n, head_dim]: keys first. int8: in units of the graph's scales."""
_ONE = np.ones(1, np.int64)


class Cache(Protocol):
    """Keys and values of earlier tokens, in every layer, for one or several rows.

    lengths: how many tokens each row holds.
    """

    lengths: list[int]

    def extend(self, ids: Sequence[int], *, row: int = 0, keep: int = 1) -> Logits:
        """Prefill: run the model over `ids`, which follow the tokens of the row, and append them to the row.

        Returns the logits [keep, n_vocab] after each of the last `keep` ids.
        """

    def step(self, ids: Sequence[int]) -> Logits:
        """Decode: append one id to each of the first len(ids) rows, in one pass.

        Returns the logits [len(ids), n_vocab]; the next step overwrites them.
        """

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Copy the source row, or its first `length` tokens, over the target row."""

    def reorder(self, order: Sequence[int], *, begin: int = 0) -> None:
        """Replace row i by row order[i], for each of the first len(order) rows; the others stay.

        begin: the positions before it are equal in all of these rows, and are not copied.
        """

    def clear_row(self, row: int) -> None:
        """Remove all tokens of the row."""

    def truncate(self, row: int, length: int) -> None:
        """Remove the tokens of the row beyond its first `length`."""

    def read_row(self, row: int, end: int) -> KeysValues:
        """A copy of the keys and values of the first `end` tokens of the row."""

    def write_row(self, row: int, keys_values: KeysValues) -> None:
        """Replace the row by a copy of these keys and values."""


def check_ids(ids: Sequence[int], n_vocab: int) -> None:
    """Raise ValueError for an id outside the vocabulary, for which some kernels return wrong rows without an error."""
    if len(ids) and not (min(ids) >= 0 and max(ids) < n_vocab):
        wrong = next(id_ for id_ in ids if not 0 <= id_ < n_vocab)
        raise ValueError(f"token id {wrong} is outside the vocabulary of {n_vocab:,}")


def tensor_names(config: Config) -> list[str]:
    """`{}.0.key, {}.0.value, {}.1.key ...`: names to format with "past_key_values" or "present"."""
    return [f"{{}}.{layer}.{part}" for layer in range(config.n_layer) for part in ("key", "value")]


class InPlaceCache:
    """A cache of one buffer for each layer: past and present are the same memory, and the graph writes it in place.

    The graph writes the new keys and values into the buffer. The mask is as long as the buffer, with ones for the
    tokens held, so that every tensor of a decoding step is made only once. The operator takes several tokens on
    top of a past for one row only, so rows are prefilled one by one, each into its own part of the buffers.
    A binding holds the tensors of a pass, so that nothing is converted when it runs; it takes the overridable
    initializer num_logits_to_keep too, and the outputs to write into.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        config: Config,
        capacity: int,
        rows: int = 1,
        *,
        kind: CacheType = "fp32",
        embedding: Embedding | None = None,
        needs_even_rows: bool = False,
        hidden: bool = False,
    ) -> None:
        """Allocate memory for `capacity` tokens in each of `rows` rows.

        kind: the type of the session's keys and values.
        embedding: what reads the rows of the embedding, for a graph that takes them; None for one that takes ids.
        needs_even_rows: compute a step of an odd number of rows with a spare row, whose only token is id 0.
        hidden: passes return the hidden states of the last layer, [.., n_embd], in place of logits [.., n_vocab].
        """
        self._session = session
        self._embedding = embedding
        self._n_vocab = config.vocab_size
        self._n_embd = config.n_embd
        self._width = config.n_embd if hidden else config.vocab_size
        self.lengths = [0] * rows
        # The spare row is the first in memory, and so beside any number of first rows. It takes little memory: the
        # system provides only pages that are written to, and only its first position is.
        self._n_spare = int(needs_even_rows)
        n_all = self._n_spare + rows
        # The dimension of 2 is for keys and values.
        shape = (config.n_layer, 2, n_all, config.n_head, capacity, config.head_dim)
        self._all_buffers = np.zeros(shape, DTYPES[kind])
        self._all_masks = np.zeros((n_all, capacity), np.int64)
        self._all_masks[: self._n_spare, 0] = 1
        self._buffers = self._all_buffers[:, :, self._n_spare :]
        self._mask = self._all_masks[self._n_spare :]
        past = [name.format("past_key_values") for name in tensor_names(config)]
        present = [name.format("present") for name in tensor_names(config)]
        # The graph of an int8 cache has no mask.
        self._takes_mask = kind == "fp32"
        masks = ["attention_mask"] if self._takes_mask else []
        # With hidden states, logits are computed for one position.
        self._fixed = [_share(_ONE)] if hidden else []
        kept = ["num_logits_to_keep", KEEP_HIDDEN] if hidden else ["num_logits_to_keep"]
        tokens = "input_ids" if embedding is None else TOKEN_EMBEDDINGS
        self._feed_names = [*kept, tokens, "position_ids", *masks, *past]
        self._fetch_names = [HIDDEN if hidden else "logits", *present]
        # The tensors of decoding steps by their number of rows.
        self._steps: dict[int, _Pass] = {}

    def extend(self, ids: Sequence[int], *, row: int = 0, keep: int = 1) -> Logits:
        """See `Cache.extend`. Raises ValueError beyond the capacity, where a pass would write outside the buffers."""
        begin = self.lengths[row]
        end = begin + len(ids)
        check_ids(ids, self._n_vocab)
        self._check_room(end)
        self._mask[row, :end] = 1
        one = self._pass(row, row + 1, len(ids), keep)
        one.ids[0] = ids
        one.positions[0] = np.arange(begin, end)
        self._run(one)
        self.lengths[row] = end
        logits: Logits = one.logits[0]
        return logits

    def begin_rows(self, rows: Sequence[Sequence[int]], *, keep: int) -> Logits:
        """Run the model over the first ids of each row, all rows in one pass, padded on the right to the capacity.

        The operator takes several tokens in several rows only if there is no past and the mask is as long as the pass.
        Returns the logits [len(rows), keep, n_vocab] after the last `keep` positions, padding included. Raises
        ValueError beyond the capacity, and for an id outside the vocabulary.
        """
        capacity = self._mask.shape[1]
        for ids in rows:
            check_ids(ids, self._n_vocab)
        self._check_room(max(map(len, rows)))
        one = self._pass(0, len(rows), capacity, keep)
        for row, ids in enumerate(rows):
            one.ids[row, : len(ids)] = ids
            one.positions[row, : len(ids)] = np.arange(len(ids))
            self._mask[row] = np.arange(capacity) < len(ids)
            self.lengths[row] = len(ids)
        self._run(one)
        return one.logits

    def step(self, ids: Sequence[int]) -> Logits:
        """See `Cache.step`. Raises ValueError beyond the capacity."""
        n = len(ids)
        check_ids(ids, self._n_vocab)
        self._check_room(max(self.lengths[:n]) + 1)
        n_spare = n % 2 if self._n_spare else 0
        if n not in self._steps:
            self._steps[n] = self._pass(-n_spare, n, 1, 1)
        step = self._steps[n]
        for row, id_ in enumerate(ids):
            step.ids[n_spare + row, 0] = id_
            step.positions[n_spare + row, 0] = self.lengths[row]
            self._mask[row, self.lengths[row]] = 1
            self.lengths[row] += 1
        self._run(step)
        logits: Logits = step.logits[n_spare:, 0]
        return logits

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """See `Cache.copy_row`."""
        n = self.lengths[source] if length is None else length
        self.lengths[target] = n
        self._buffers[:, :, target, :, :n] = self._buffers[:, :, source, :, :n]
        self._mask[target] = np.arange(self._mask.shape[1]) < n

    def reorder(self, order: Sequence[int], *, begin: int = 0) -> None:
        """See `Cache.reorder`."""
        targets = [row for row, source in enumerate(order) if row != source]
        if not targets:
            return
        sources = [order[row] for row in targets]
        end = max(self.lengths[row] for row in sources)
        # Layer by layer, to bound the memory of the copy on the right side, without which rows would overwrite others.
        for layer in self._buffers:
            layer[:, targets, :, begin:end] = layer[:, sources, :, begin:end]
        self._mask[targets] = self._mask[sources]
        self.lengths[: len(order)] = [self.lengths[row] for row in order]

    def clear_row(self, row: int) -> None:
        """See `Cache.clear_row`."""
        self.lengths[row] = 0
        self._mask[row] = 0

    def truncate(self, row: int, length: int) -> None:
        """See `Cache.truncate`."""
        self._mask[row, length : self.lengths[row]] = 0
        self.lengths[row] = min(length, self.lengths[row])

    def read_row(self, row: int, end: int) -> KeysValues:
        """See `Cache.read_row`."""
        return self._buffers[:, :, row, :, :end].copy()

    def write_row(self, row: int, keys_values: KeysValues) -> None:
        """See `Cache.write_row`. Raises ValueError beyond the capacity."""
        n = keys_values.shape[3]
        self._check_room(n)
        self._buffers[:, :, row, :, :n] = keys_values
        self._mask[row] = np.arange(self._mask.shape[1]) < n
        self.lengths[row] = n

    def _check_room(self, end: int) -> None:
        if end > self._mask.shape[1]:
            raise ValueError(f"{end} tokens exceed the cache's capacity of {self._mask.shape[1]}")

    def _pass(self, begin: int, end: int, n_ids: int, keep: int) -> _Pass:
        """The tensors of a pass of `n_ids` ids over rows `begin` to `end`, on the memory of the buffers.

        begin: -1 includes the spare row.
        """
        n_rows = end - begin
        rows = slice(self._n_spare + begin, self._n_spare + end)
        ids = np.zeros((n_rows, n_ids), np.int64)
        positions = np.zeros((n_rows, n_ids), np.int64)
        kept = np.array([keep], np.int64)
        embeddings = None if self._embedding is None else np.empty((n_rows, n_ids, self._n_embd), np.float32)
        logits = np.empty((n_rows, keep, self._width), np.float32)
        values = [_share(part[rows]) for layer in self._all_buffers for part in layer]
        masks = [self._all_masks[rows]] if self._takes_mask else []
        tokens = ids if embeddings is None else embeddings
        feeds = (*self._fixed, *map(_share, (kept, tokens, positions, *masks)), *values)
        binding = self._session.io_binding()
        for name, value in zip(self._feed_names, feeds, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._fetch_names, (_share(logits), *values), strict=True):
            binding.bind_ortvalue_output(name, value)
        return _Pass(ids, embeddings, positions, kept, logits, binding)

    def _run(self, one: _Pass) -> None:
        if self._embedding is not None and one.embeddings is not None:
            self._embedding.read(one.ids, one.embeddings)
        with named_failure():
            self._session.run_with_iobinding(one.binding)


class _Pass(NamedTuple):
    """Inputs and outputs of a pass. The arrays stay here because the OrtValues share their memory without owning it.

    embeddings: the rows of the embedding for `ids`, where the graph takes them in place of ids.
    """

    ids: NDArray[np.int64]  # [n_rows, n_ids]
    embeddings: NDArray[np.float32] | None  # [n_rows, n_ids, n_embd]
    positions: NDArray[np.int64]  # [n_rows, n_ids]
    keep: NDArray[np.int64]  # [1]
    logits: Logits  # [n_rows, keep, n_vocab]
    binding: onnxruntime.IOBinding


@contextlib.contextmanager
def named_failure() -> Iterator[None]:
    """Turn errors of onnxruntime, which share no base class but Exception, into RuntimeError; often it lacks memory."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"onnxruntime could not run the model: {error}") from error


def _share(array: NDArray[np.int64 | np.int8 | np.float32]) -> onnxruntime.OrtValue:
    """An OrtValue on the array's own memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
