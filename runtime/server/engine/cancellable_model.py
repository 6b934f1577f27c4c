"""A model whose passes end with the request that they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from runtime.model.kv_cache import Cache, Logits
from runtime.model.model import Model


class CancellableModel(Model):
    """An open model as one request sees it: whatever is done with its caches, `check` is called before.

    So work that knows nothing of requests, such as scoring, ends before its next pass when `check` raises.
    """

    def __init__(self, model: Model, check: Callable[[], object]) -> None:
        # All parts are those of the open model: nothing is loaded again.
        self.__dict__.update(vars(model))
        self._opened = model
        self._check = check

    def __eq__(self, other: object) -> bool:
        # What is kept of the open model, such as the texts of its tokens, is true of this one.
        return other is self or other is self._opened

    def __hash__(self) -> int:
        return hash(self._opened)

    def new_cache(self, capacity: int, rows: int = 1, *, hidden: bool = False) -> Cache:
        """See `Model.new_cache`. Raises what `check` raises."""
        self._check()
        return cast(Cache, _CheckedCache(super().new_cache(capacity, rows, hidden=hidden), self._check))

    def run_classifier(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        """See `Model.run_classifier`. Raises what `check` raises."""
        self._check()
        return super().run_classifier(ids, mask)


class _CheckedCache:
    def __init__(self, cache: Cache, check: Callable[[], object]) -> None:
        self._cache = cache
        self._check = check

    def __getattr__(self, name: str) -> Any:
        self._check()
        return getattr(self._cache, name)
