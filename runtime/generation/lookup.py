"""Prompt lookup: what followed the last ids where they stood before (Saxena, Prompt Lookup Decoding, 2023)."""

from __future__ import annotations

from collections.abc import Sequence

NGRAM_SIZES = (3, 2)  # the longer is looked for first


class Lookup:
    """A `Proposer` that reads on from the latest earlier occurrence of the last ids."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the id after its latest occurrence stands
        self._n_seen = 0  # ids that stand after an indexed n-gram, or have none before them

    def propose(self, ids: Sequence[int], n: int) -> list[int]:
        """See `Proposer.propose`. As many as were alike before, less one: two alike are often chance, twenty seldom."""
        self._index(ids)
        at = self._find(ids)
        if at is None:
            return []
        source = ids[at : at + n]
        return [source[i % len(source)] for i in range(min(n, _n_alike(ids, at, n + 1) - 1))]  # it may reach itself

    def _index(self, ids: Sequence[int]) -> None:
        for at in range(self._n_seen, len(ids)):
            for size in NGRAM_SIZES:
                if at >= size:
                    self._after[tuple(ids[at - size : at])] = at
        self._n_seen = len(ids)

    def _find(self, ids: Sequence[int]) -> int | None:
        found = (self._after.get(tuple(ids[-size:])) for size in NGRAM_SIZES if len(ids) > size)
        return next((at for at in found if at is not None), None)


def _n_alike(ids: Sequence[int], at: int, most: int) -> int:
    """How many ids before `at` are those at the end."""
    n = min(NGRAM_SIZES)
    while n < min(most, at) and ids[at - n - 1] == ids[-n - 1]:
        n += 1
    return n
