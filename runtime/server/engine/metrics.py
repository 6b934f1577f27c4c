"""Counts and times for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runtime.generation.completion import Completion

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """A registry of its own: several servers may run in a process."""

    def __init__(
        self, n_running: Callable[[], int], n_waiting: Callable[[], int], n_cache_bytes: Callable[[], int]
    ) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("gpt2_edge_requests", "Requests answered", ["path", "status"], registry=registry)
        self._prompt = Counter("gpt2_edge_prompt_tokens", "Tokens of prompts", registry=registry)
        self._cached = Counter(
            "gpt2_edge_cached_prompt_tokens", "Tokens of prompts that were not computed again", registry=registry
        )
        self._new = Counter("gpt2_edge_new_tokens", "Tokens generated", registry=registry)
        self.scored = Counter("gpt2_edge_scored_tokens", "Tokens of texts that were measured", registry=registry)
        self._ends = Counter(
            "gpt2_edge_continuations", "Continuations by what ended them", ["reason"], registry=registry
        )
        self.seconds = Histogram(
            "gpt2_edge_request_seconds", "From request to the end of the reply", buckets=_SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "gpt2_edge_first_token_seconds", "From request to the first token", buckets=_SECONDS, registry=registry
        )
        running = Gauge("gpt2_edge_running", "Continuations that decode now", registry=registry)
        waiting = Gauge("gpt2_edge_waiting", "Continuations that wait for a row", registry=registry)
        cache = Gauge("gpt2_edge_prompt_cache_bytes", "Memory of the prompt cache", registry=registry)
        running.set_function(n_running)
        waiting.set_function(n_waiting)
        cache.set_function(n_cache_bytes)

    def count(self, completion: Completion, n_cached: int) -> None:
        """A continuation that ended, and how many tokens of its prompt were not computed again."""
        self._prompt.inc(completion.n_prompt_tokens)
        self._cached.inc(n_cached)
        self._new.inc(completion.n_tokens)
        self._ends.labels(completion.finish_reason).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)
