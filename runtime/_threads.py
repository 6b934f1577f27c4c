"""Run a function in a thread while the caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class InThread(Generic[T]):
    """Runs a function beside the block of a `with`, whose end waits for it. `result` returns or raises what it did.

    >>> with InThread(lambda: 2 + 2) as sum_:
    ...     other = 3
    >>> sum_.result()
    4
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._found.append(self._function())
        # Raised again by `result`.
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.join()

    def result(self) -> T:
        """What the function returned. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._found[0]
