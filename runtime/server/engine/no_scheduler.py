"""What stands in the place of the scheduler where a classifier is served: no row is ever decoded."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.server.engine.served_row import ServedRow


class NoScheduler:
    """See `runtime.server.engine.scheduler.Scheduler` for the methods."""

    n_running = 0
    n_prompt_cache_bytes = 0
    is_alive = True

    def start(self) -> None:
        """Nothing to start."""

    def submit(self, rows: Iterable[ServedRow]) -> None:
        """Raises AssertionError: `Engine.check_writes` refuses requests before."""
        raise AssertionError(f"a classifier decodes no rows: {rows!r}")

    def position(self, rows: Iterable[ServedRow]) -> int:  # noqa: ARG002
        """0: nothing waits."""
        return 0

    def close(self) -> None:
        """Nothing to end."""
