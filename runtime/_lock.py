"""The lock of this package: what a finalizer or a fork does while it is held cannot make anyone wait for ever.

The garbage collector may run wherever an object is made, inside a critical section too, and the finalizers that it
calls may come back for the same lock: so it is reentrant. A fork copies the state of a lock and none of the threads
that would release it: so what another thread held is made anew in the child.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType


class Lock:
    """For `with`. What it guards has to be valid at every step, since a fork or a finalizer may come at any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def free_in_child(self) -> None:
        """In a fork: give up what a thread of the parent held. What the forking thread itself holds, it still does."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


_all: weakref.WeakSet[Lock] = weakref.WeakSet()
# For imports that come late, in a thread perhaps. The interpreter's own locks of modules stay held in a fork, so a fork
# waits for the end of such an import: `with importing: from runtime import beam`.
importing = threading.RLock()


def _free_all() -> None:
    importing.release()
    for lock in list(_all):
        lock.free_in_child()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=_free_all)
