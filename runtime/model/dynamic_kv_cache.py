"""The key-value cache of plain exports, whose graph returns past and new keys and values in new tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

from runtime.model.config import Config
from runtime.model.kv_cache import KeysValues, Logits, check_ids, named_failure, tensor_names


class GrowingCache:
    """The cache of a plain optimum export, with one row; see `Cache` for the methods."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        config: Config,
        check_pass: Callable[[int], object] = lambda _: None,
    ) -> None:
        """check_pass: raises ValueError for a number of ids that the graph must not be run with."""
        self._check_pass = check_pass
        self._session = session
        names = tensor_names(config)
        self._n_vocab = config.vocab_size
        empty = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty((1, config.n_head, 0, config.head_dim), np.float32))
        self._empty = {name.format("past_key_values"): empty for name in names}
        self._past: dict[str, onnxruntime.OrtValue] = self._empty
        self.lengths = [0]
        self._fetch_names = ["logits", *(name.format("present") for name in names)]
        self._takes_positions = any(value.name == "position_ids" for value in session.get_inputs())

    def extend(self, ids: Sequence[int], *, row: int = 0, keep: int = 1) -> Logits:
        """See `Cache.extend`; the only row is 0."""
        check_ids(ids, self._n_vocab)
        self._check_pass(len(ids))
        begin = self.lengths[row]
        end = begin + len(ids)
        arrays = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, end), np.int64)}
        if self._takes_positions:
            arrays["position_ids"] = np.arange(begin, end, dtype=np.int64)[None]
        feeds = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        with named_failure():
            logits, *present = self._session.run_with_ort_values(self._fetch_names, feeds | self._past)
        self._past = dict(zip(self._past, present, strict=True))
        self.lengths[row] = end
        # A copy, since the array does not keep the OrtValue alive whose memory it shows.
        return np.array(logits.numpy()[0, len(ids) - keep :])

    def step(self, ids: Sequence[int]) -> Logits:
        """See `Cache.step`."""
        return self.extend(ids)

    def clear_row(self, row: int) -> None:
        """See `Cache.clear_row`."""
        self.lengths[row] = 0
        self._past = self._empty

    def truncate(self, row: int, length: int) -> None:
        """See `Cache.truncate`."""
        if length < self.lengths[row]:
            self.write_row(row, self.read_row(row, length))

    def read_row(self, row: int, end: int) -> KeysValues:  # noqa: ARG002
        """See `Cache.read_row`."""
        parts = np.array([value.numpy()[0, :, :end] for value in self._past.values()])
        return parts.reshape(len(parts) // 2, 2, *parts.shape[1:])

    def write_row(self, row: int, keys_values: KeysValues) -> None:
        """See `Cache.write_row`."""
        parts = [np.array(part[None]) for layer in keys_values for part in layer]
        values = map(onnxruntime.OrtValue.ortvalue_from_numpy, parts)
        self._past = dict(zip(self._past, values, strict=True))
        self.lengths[row] = keys_values.shape[3]

    def copy_row(self, source: int, target: int, length: int | None = None) -> None:  # noqa: ARG002
        """Raise ValueError for another row than the only one."""
        if source != target:
            raise ValueError(f"a plain ONNX export decodes one row at a time; there is no row {target}")

    def reorder(self, order: Sequence[int], *, begin: int = 0) -> None:  # noqa: ARG002
        """Raise ValueError for another order than that of the only row."""
        if list(order) != [0]:
            raise ValueError(f"a plain ONNX export decodes one row at a time; there are no rows {list(order)}")
