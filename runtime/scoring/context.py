"""A context that is run through the model once, however many continuations are scored or decoded after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runtime.model.kv_cache import Logits
from runtime.model.model import Model
from runtime.model.prefill import cut, prefill
from runtime.prefixes.prefix import Prefix, known


class SharedContext:
    """The keys and values of a context, and the logits [n_vocab] after it.

    Each continuation works on a copy of the row, so it has the results that it would have alone. The graph of a plain
    export holds one row only, so there the context is run again for each continuation, with the same results.
    """

    def __init__(
        self, model: Model, ids: Sequence[int], room: int, n_uses: int = 1, prefix: Prefix | None = None
    ) -> None:
        """Run the context.

        room: the most ids that follow it. n_uses: how often `begin` will be called.
        prefix: the tokens that it has in common with the context are not computed again.
        Raises ValueError for a context of no ids.
        """
        self._ids = list(ids)
        self._known = known(prefix, ids)
        n_rows = 2 if model.is_fused and n_uses > 1 else 1
        self._cache = model.new_cache(len(ids) + room, n_rows)
        self.logits: Logits = self._prefill().copy()

    def _prefill(self) -> Logits:
        return prefill(self._cache, self._ids, known=self._known)

    def begin(self) -> int:
        """A row of the cache that holds the context alone. The continuation of the last use is forgotten."""
        if len(self._cache.lengths) > 1:
            self._cache.copy_row(0, 1)
            return 1
        if self._cache.lengths[0] != len(self._ids):
            self._prefill()
        return 0

    def extend(self, row: int, ids: Sequence[int]) -> Iterator[Logits]:
        """Run `ids` after the tokens that the row holds; yields the logits [n, n_vocab] after each of them.

        They are run in the passes of `runtime.model.prefill.cut`.
        """
        for chunk in cut(ids, self._cache.lengths[row]):
            yield self._cache.extend(chunk, row=row, keep=len(chunk))
