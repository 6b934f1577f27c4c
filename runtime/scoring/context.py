"""A context that goes through the model once, however many continuations are scored or decoded on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runtime.model.kv_cache import Logits
from runtime.model.model import Model
from runtime.model.prefill import cut, prefill
from runtime.prefixes.prefix import Prefix, known


class SharedContext:
    """The keys and values of a context, and the logits [n_vocab] after it.

    Each use works on a copy of the row, so it sees what it would see alone. A plain export holds one row only: there
    the context is run again, with the same result.
    """

    def __init__(
        self, model: Model, ids: Sequence[int], room: int, n_uses: int = 1, prefix: Prefix | None = None
    ) -> None:
        """`room`: for so many ids beyond the context. `n_uses`: how often `begin` will be called.

        `prefix`: what it has in common with the context is not computed again. Raises ValueError for no ids.
        """
        self._ids, self._known = list(ids), known(prefix, ids)
        self._cache = model.new_cache(len(ids) + room, 2 if model.is_fused and n_uses > 1 else 1)
        self.logits: Logits = self._prefill().copy()

    def _prefill(self) -> Logits:
        return prefill(self._cache, self._ids, known=self._known)

    def begin(self) -> int:
        """A row of the cache that holds the context and nothing else; what the last use held is gone."""
        if len(self._cache.lengths) > 1:
            self._cache.copy_row(0, 1)
            return 1
        if self._cache.lengths[0] != len(self._ids):
            self._prefill()
        return 0

    def extend(self, row: int, ids: Sequence[int]) -> Iterator[Logits]:
        """Run `ids` on top of what the row holds; logits [n, n_vocab] after each of them, in passes.

        The passes are those of `runtime.model.prefill.cut`.
        """
        for chunk in cut(ids, self._cache.lengths[row]):
            yield self._cache.extend(chunk, row=row, keep=len(chunk))
