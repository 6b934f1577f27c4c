"""The key-value cache, and the passes through the model that extend it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import OrtDevice, OrtValue, OrtValueVector, RunOptions

from runtime.model.config import Config

Logits = NDArray[np.float32]
KeysValues = NDArray[np.float32]  # [n_layer, 2, n_head, n, head_dim] of n tokens: keys first
_CPU = OrtDevice(OrtDevice.cpu(), OrtDevice.default_memory(), 0)


class Cache(Protocol):
    """Keys and values of the tokens seen so far, in every layer, for one or several rows."""

    lengths: list[int]  # tokens held, a row each

    def extend(self, ids: Sequence[int], *, row: int = 0, keep: int = 1) -> Logits:
        """Run the model over `ids`, which follow what the row holds, and hold them too: prefill.

        Returns the logits [keep, n_vocab] after the last `keep` of them.
        """

    def step(self, ids: Sequence[int]) -> Logits:
        """One id more for each of the first len(ids) rows, in one pass: decoding.

        Returns the logits [len(ids), n_vocab], valid until the next step.
        """

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """Make the target row hold what the source row holds, or the first `length` tokens of it."""

    def reorder(self, order: Sequence[int], *, begin: int = 0) -> None:
        """Make row i hold what row order[i] held, for each of the first len(order) rows; the others stay.

        begin: positions before it hold the same in all of these rows, and are not copied.
        """

    def clear_row(self, row: int) -> None:
        """Forget what the row holds."""

    def truncate(self, row: int, length: int) -> None:
        """Forget what the row holds beyond its first `length` tokens."""

    def read_row(self, row: int, end: int) -> KeysValues:
        """A copy of the keys and values of the first `end` tokens that the row holds."""

    def write_row(self, row: int, keys_values: KeysValues) -> None:
        """Make the row hold tokens with these keys and values, a copy of them, and nothing else."""


def check_ids(ids: Sequence[int], n_vocab: int) -> None:
    """Raise ValueError for an id outside the vocabulary: some kernels read zeros or count from the end for it."""
    if len(ids) and not (min(ids) >= 0 and max(ids) < n_vocab):
        wrong = next(id_ for id_ in ids if not 0 <= id_ < n_vocab)
        raise ValueError(f"token id {wrong} is outside the vocabulary of {n_vocab:,}")


def tensor_names(config: Config) -> list[str]:
    """`{}.0.key, {}.0.value, {}.1.key ...`, to be filled in with past_key_values or present."""
    return [f"{{}}.{layer}.{part}" for layer in range(config.n_layer) for part in ("key", "value")]


class InPlaceCache:
    """One buffer a layer, past and present at once: `GroupQueryAttention` writes the new keys and values into it.

    The mask is as long as the buffer, with ones for the tokens held, so every tensor of a decoding step is made
    once. The operator takes several tokens on top of a past for one row only, so rows are prefilled one by one,
    each into its own part of the buffers. `run_with_ortvaluevector` is the call that takes an overridable
    initializer (num_logits_to_keep) and writes into given outputs.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        config: Config,
        capacity: int,
        rows: int = 1,
        *,
        needs_even_rows: bool = False,
    ) -> None:
        """Allocate for `capacity` tokens in each of `rows`.

        needs_even_rows: a step of an odd number of rows takes one more, whose only token is id 0.
        """
        self._session, self._options, self._n_vocab = session, RunOptions(), config.vocab_size
        self.lengths = [0] * rows
        # The row that makes odd numbers even is the first in memory, so it is beside any number of first rows. The
        # system gives memory to pages that are written to, and of this row only the first position is.
        self._n_spare = int(needs_even_rows)
        n_all = self._n_spare + rows
        # 2: keys and values
        self._all_buffers = np.zeros((config.n_layer, 2, n_all, config.n_head, capacity, config.head_dim), np.float32)
        self._all_masks = np.zeros((n_all, capacity), np.int64)
        self._all_masks[: self._n_spare, 0] = 1
        self._buffers = self._all_buffers[:, :, self._n_spare :]
        self._mask = self._all_masks[self._n_spare :]
        past, present = (
            [name.format(kind) for name in tensor_names(config)] for kind in ("past_key_values", "present")
        )
        self._feed_names = ["num_logits_to_keep", "input_ids", "position_ids", "attention_mask", *past]
        self._fetch_names = ["logits", *present]
        self._devices = [_CPU] * len(self._fetch_names)
        self._steps: dict[int, _Pass] = {}  # by number of rows

    def extend(self, ids: Sequence[int], *, row: int = 0, keep: int = 1) -> Logits:
        """See `Cache.extend`. Raises ValueError when the capacity is passed: a pass beyond it would corrupt memory."""
        begin, end = self.lengths[row], self.lengths[row] + len(ids)
        check_ids(ids, self._n_vocab)
        self._check_room(end)
        self._mask[row, :end] = 1
        one = self._pass(row, row + 1, len(ids), keep)
        one.ids[0], one.positions[0] = ids, np.arange(begin, end)
        self._run(one)
        self.lengths[row] = end
        logits: Logits = one.logits[0]
        return logits

    def begin_rows(self, rows: Sequence[Sequence[int]], *, keep: int) -> Logits:
        """Run the model over the ids that begin each row, all rows in one pass, padded on the right to the capacity.

        The operator takes several tokens in several rows only where there is no past and the mask is as long as the
        pass. Returns the logits [len(rows), keep, n_vocab] after the last `keep` positions, those of padding too.
        Raises ValueError when the capacity is passed.
        """
        capacity = self._mask.shape[1]
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
        """See `Cache.step`. Raises ValueError when the capacity is passed."""
        n = len(ids)
        check_ids(ids, self._n_vocab)
        self._check_room(max(self.lengths[:n]) + 1)
        n_spare = n % 2 if self._n_spare else 0
        if n not in self._steps:
            self._steps[n] = self._pass(-n_spare, n, 1, 1)
        step = self._steps[n]
        for row, id_ in enumerate(ids):
            step.ids[n_spare + row, 0], step.positions[n_spare + row, 0] = id_, self.lengths[row]
            self._mask[row, self.lengths[row]] = 1
            self.lengths[row] += 1
        self._run(step)
        logits: Logits = step.logits[n_spare:, 0]
        return logits

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:
        """See `Cache.copy_row`."""
        n = self.lengths[target] = self.lengths[source] if length is None else length
        self._buffers[:, :, target, :, :n] = self._buffers[:, :, source, :, :n]
        self._mask[target] = np.arange(self._mask.shape[1]) < n

    def reorder(self, order: Sequence[int], *, begin: int = 0) -> None:
        """See `Cache.reorder`."""
        targets = [row for row, source in enumerate(order) if row != source]
        if not targets:
            return
        sources = [order[row] for row in targets]
        end = max(self.lengths[row] for row in sources)
        for layer in self._buffers:  # one at a time: the right side is a copy, or rows would overwrite one another
            layer[:, targets, :, begin:end] = layer[:, sources, :, begin:end]
        self._mask[targets] = self._mask[sources]
        self.lengths[: len(order)] = [self.lengths[row] for row in order]

    def clear_row(self, row: int) -> None:
        """Forget what the row holds."""
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
        """See `Cache.write_row`. Raises ValueError when the capacity is passed."""
        n = keys_values.shape[3]
        self._check_room(n)
        self._buffers[:, :, row, :, :n] = keys_values
        self._mask[row] = np.arange(self._mask.shape[1]) < n
        self.lengths[row] = n

    def _check_room(self, end: int) -> None:
        if end > self._mask.shape[1]:
            raise ValueError(f"{end} tokens pass the cache's capacity of {self._mask.shape[1]}")

    def _pass(self, begin: int, end: int, n_ids: int, keep: int) -> _Pass:
        """The tensors of a pass of `n_ids` over rows `begin` to `end`, on the buffers' own memory; -1 is the spare."""
        n_rows, rows = end - begin, slice(self._n_spare + begin, self._n_spare + end)
        ids, positions = np.zeros((n_rows, n_ids), np.int64), np.zeros((n_rows, n_ids), np.int64)
        kept, logits = np.array([keep], np.int64), np.empty((n_rows, keep, self._n_vocab), np.float32)
        values = [_share(part[rows]) for layer in self._all_buffers for part in layer]
        feeds, fetches = OrtValueVector(), OrtValueVector()
        for value in (*map(_share, (kept, ids, positions, self._all_masks[rows])), *values):
            feeds.push_back(value)
        for value in (_share(logits), *values):
            fetches.push_back(value)
        return _Pass(ids, positions, kept, logits, feeds, fetches)

    def _run(self, one: _Pass) -> None:
        with named_failure():
            self._session.run_with_ortvaluevector(
                self._options, self._feed_names, one.feeds, self._fetch_names, one.fetches, self._devices
            )


class _Pass(NamedTuple):
    """Inputs and outputs of a pass: the OrtValues share the arrays' memory and do not keep it alive."""

    ids: NDArray[np.int64]  # [n_rows, n_ids]
    positions: NDArray[np.int64]
    keep: NDArray[np.int64]
    logits: Logits  # [n_rows, keep, n_vocab]
    feeds: OrtValueVector
    fetches: OrtValueVector


@contextlib.contextmanager
def named_failure() -> Iterator[None]:
    """onnxruntime's own exceptions share no base class but Exception: out of memory is the commonest."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"onnxruntime could not run the model: {error}") from error


def _share(array: NDArray[np.int64] | Logits) -> OrtValue:
    """An OrtValue on the array's own memory, which the caller keeps alive."""
    return OrtValue.ortvalue_from_numpy(array, _CPU)
