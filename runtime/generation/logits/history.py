"""The latest ids of a continuation: what penalties have to know of them, kept up to date id by id."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Lengths = NDArray[np.int32]


class TokenHistory:
    """A window over the latest ids of one continuation: how often each occurs, and what has been repeated.

    `follow` takes in new ids. Each costs at most one pass over the window, however long the continuation has become;
    ids that have left the window are never looked at again.

    >>> history = TokenHistory(n_prompt=2, n_window=8, finds_repeats=True)
    >>> history.follow([7, 8, 9, 7, 8])
    >>> history.counts[8], history.generated_counts[8]
    (2, 1)
    >>> history.completing(3).tolist()  # 9 would complete 7 8 9 again
    [9]
    """

    def __init__(self, n_prompt: int, n_window: int, *, finds_repeats: bool = False) -> None:
        """`n_prompt`: so many ids at the beginning are the prompt's; `n_window`: so many of the latest count.

        `finds_repeats`: for `completing` and `repeat_lengths`.
        """
        self.counts: Counter[int] = Counter()  # of each id in the window
        self.generated_counts: Counter[int] = Counter()  # of those that are not the prompt's
        self._n_prompt = n_prompt
        self._n_window = n_window
        self._n_seen = 0
        # Twice the window: ids are written one after the other, and moved to the beginning when the end is reached.
        self._ids: Ids = np.empty(2 * n_window, np.int64)
        # At each place: how many ids up to there are those at the end of the window.
        self._lengths: Lengths | None = np.zeros(2 * n_window, np.int32) if finds_repeats else None
        self._begin = 0
        self._end = 0

    def follow(self, ids: Sequence[int]) -> None:
        """Take in what is new. `ids`: all of the continuation with its prompt: those of the last call, and more."""
        n_outside = len(ids) - self._n_window
        if n_outside > self._n_seen:
            self._restart(n_outside)
        for id_ in ids[self._n_seen :]:
            self._push(id_)

    def fork(self) -> TokenHistory:
        """A copy that goes its own way."""
        other = copy.copy(self)
        other.counts = self.counts.copy()
        other.generated_counts = self.generated_counts.copy()
        other._ids = self._ids.copy()
        other._lengths = None if self._lengths is None else self._lengths.copy()
        return other

    @property
    def window(self) -> Ids:
        """The latest ids, oldest first: a view."""
        return self._ids[self._begin : self._end]

    @property
    def repeat_lengths(self) -> Lengths:
        """For each id of the window but the last: how many ids up to it are the window's last ones, in their order."""
        assert self._lengths is not None
        lengths = self._lengths[self._begin : max(self._begin, self._end - 1)]
        # What stands before the window does not count.
        return np.minimum(lengths, np.arange(1, len(lengths) + 1, dtype=np.int32))

    def completing(self, size: int) -> Ids:
        """The ids that would complete a sequence of `size` ids that the window has already; none for 0."""
        if size < 2:
            return self.window[: len(self.window) * size]
        following = self.window[1:]
        return following[self.repeat_lengths >= size - 1]

    def _restart(self, n_seen: int) -> None:
        """Forget all: none of it is in the window any more."""
        self._n_seen = n_seen
        self._begin = 0
        self._end = 0
        self.counts.clear()
        self.generated_counts.clear()

    def _push(self, id_: int) -> None:
        if self._end == len(self._ids):
            self._move_to_beginning()
        if self._end - self._begin == self._n_window:
            self._drop_oldest()
        if self._lengths is not None:
            self._extend_repeats(self._lengths, id_)
        self._ids[self._end] = id_
        self._end += 1
        self.counts[id_] += 1
        if self._n_seen >= self._n_prompt:
            self.generated_counts[id_] += 1
        self._n_seen += 1

    def _extend_repeats(self, lengths: Lengths, id_: int) -> None:
        """One more where the id is the one that followed there, and 0 elsewhere."""
        begin = self._begin
        end = self._end
        if begin == end:
            return
        lengths[begin + 1 : end] = lengths[begin : end - 1] + 1
        lengths[begin] = 1
        lengths[begin:end] *= self.window == id_

    def _drop_oldest(self) -> None:
        oldest = int(self._ids[self._begin])
        _subtract(self.counts, oldest)
        if self._n_seen - self._n_window >= self._n_prompt:
            _subtract(self.generated_counts, oldest)
        self._begin += 1

    def _move_to_beginning(self) -> None:
        n = self._end - self._begin
        for array in (self._ids, self._lengths):
            if array is not None:
                array[:n] = array[self._begin : self._end].copy()
        self._begin = 0
        self._end = n


def _subtract(counts: Counter[int], id_: int) -> None:
    counts[id_] -= 1
    if not counts[id_]:
        del counts[id_]
