"""The key-value cache of one row, and the pass through the model that extends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import OrtDevice, OrtValue, OrtValueVector, RunOptions

from runtime.config import Config

Logits = NDArray[np.float32]
_CPU = OrtDevice(OrtDevice.cpu(), OrtDevice.default_memory(), 0)


class Cache(Protocol):
    """Keys and values of the tokens seen so far, in every layer."""

    length: int  # tokens held

    def extend(self, ids: Sequence[int], *, keep: int = 1) -> Logits:
        """Run the model over `ids`, which follow what the cache holds, and hold them too.

        Returns the logits [keep, n_vocab] after the last `keep` of them, valid until the next call.
        """


def tensor_names(config: Config) -> list[str]:
    """`{}.0.key, {}.0.value, {}.1.key ...`, to be filled in with past_key_values or present."""
    return [f"{{}}.{layer}.{part}" for layer in range(config.n_layer) for part in ("key", "value")]


class InPlaceCache:
    """One buffer a layer, past and present at once: `GroupQueryAttention` writes the new keys and values into it.

    The mask is as long as the buffer, with ones for the tokens held, so every tensor of a decoding step is made
    once. `run_with_ortvaluevector` is the call that takes an overridable initializer (num_logits_to_keep) and
    writes into given outputs. The OrtValues share the arrays' memory and do not keep it alive: the arrays are
    kept here.
    """

    def __init__(self, session: onnxruntime.InferenceSession, config: Config, capacity: int) -> None:
        """Allocate for `capacity` tokens."""
        self.length, self._session, self._options = 0, session, RunOptions()
        shape = (config.n_layer, 2, 1, config.n_head, capacity, config.head_dim)  # 2: keys and values
        self._buffers = np.zeros(shape, np.float32)
        self._mask = np.zeros((1, capacity), np.int64)
        self._n_vocab = config.vocab_size
        names = tensor_names(config)
        self._past = [name.format("past_key_values") for name in names]
        self._present = [name.format("present") for name in names]
        self._values = [_share(part) for layer in self._buffers for part in layer]
        self._one = np.ones(1, np.int64), np.empty((1, 1), np.int64), np.empty((1, 1), np.int64)
        self._one_logits: Logits = np.empty((1, 1, config.vocab_size), np.float32)
        self._one_vectors = self._vectors(*self._one, self._one_logits)

    def extend(self, ids: Sequence[int], *, keep: int = 1) -> Logits:
        """See `Cache.extend`. Raises ValueError when the capacity is passed: a pass beyond it would corrupt memory."""
        end = self.length + len(ids)
        if end > self._mask.shape[1]:
            raise ValueError(
                f"{self.length} tokens and {len(ids)} more pass the cache's capacity of {self._mask.shape[1]}"
            )
        self._mask[0, :end] = 1
        if len(ids) == 1:
            _, id_, position = self._one
            id_[0, 0], position[0, 0] = ids[0], self.length
            logits = self._one_logits
            self._run(*self._one_vectors)
        else:
            arrays = np.array([keep]), np.array([ids], np.int64), np.arange(self.length, end)[None]
            logits = np.empty((1, keep, self._n_vocab), np.float32)
            self._run(*self._vectors(*arrays, logits))
        self.length = end
        row: Logits = logits[0]
        return row

    def _vectors(
        self, keep: NDArray[np.int64], ids: NDArray[np.int64], positions: NDArray[np.int64], logits: Logits
    ) -> tuple[OrtValueVector, OrtValueVector]:
        feeds, fetches = OrtValueVector(), OrtValueVector()
        for value in (*map(_share, (keep, ids, positions, self._mask)), *self._values):
            feeds.push_back(value)
        for value in (_share(logits), *self._values):
            fetches.push_back(value)
        return feeds, fetches

    def _run(self, feeds: OrtValueVector, fetches: OrtValueVector) -> None:
        names = ["num_logits_to_keep", "input_ids", "position_ids", "attention_mask", *self._past]
        outputs = ["logits", *self._present]
        self._session.run_with_ortvaluevector(self._options, names, feeds, outputs, fetches, [_CPU] * len(outputs))


class GrowingCache:
    """For a plain optimum export, whose graph returns past and new keys and values in new tensors at every step."""

    def __init__(self, session: onnxruntime.InferenceSession, config: Config) -> None:
        self.length, self._session = 0, session
        empty = np.empty((1, config.n_head, 0, config.head_dim), np.float32)
        self._outputs = ["logits", *(name.format("present") for name in tensor_names(config))]
        self._past = {
            name.format("past_key_values"): onnxruntime.OrtValue.ortvalue_from_numpy(empty)
            for name in tensor_names(config)
        }
        self._takes_positions = any(value.name == "position_ids" for value in session.get_inputs())

    def extend(self, ids: Sequence[int], *, keep: int = 1) -> Logits:
        """See `Cache.extend`."""
        end = self.length + len(ids)
        arrays = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, end), np.int64)}
        if self._takes_positions:
            arrays["position_ids"] = np.arange(self.length, end)[None]
        feeds = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        logits, *present = self._session.run_with_ort_values(self._outputs, feeds | self._past)
        self._past = dict(zip(self._past, present, strict=True))
        self.length = end
        # a copy: the array of an OrtValue does not keep it alive
        return np.array(logits.numpy()[0, len(ids) - keep :])


def _share(array: NDArray[np.int64] | Logits) -> OrtValue:
    """An OrtValue on the array's own memory, which the caller keeps alive."""
    return OrtValue.ortvalue_from_numpy(array, _CPU)
