"""Counts and times for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from runtime.generation.completion import Completion

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ModelGauges(NamedTuple):
    """What is asked of a model when the metrics are read."""

    running: Callable[[], int]
    waiting: Callable[[], int]
    cache_bytes: Callable[[], int]


class ServerMetrics:
    """The metrics of a server, in a registry of its own: several servers may run in a process.

    The label `model` is the name of a model, and empty for a request that is not for one.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        of_model = ["model"]
        self._requests = Counter(
            "gpt2_edge_requests", "Requests answered", ["path", "status", "model"], registry=registry
        )
        self._seconds = Histogram(
            "gpt2_edge_request_seconds",
            "From request to the end of the reply",
            of_model,
            buckets=_SECONDS,
            registry=registry,
        )
        self.prompt = Counter("gpt2_edge_prompt_tokens", "Tokens of prompts", of_model, registry=registry)
        self.cached = Counter(
            "gpt2_edge_cached_prompt_tokens",
            "Tokens of prompts that were not computed again",
            of_model,
            registry=registry,
        )
        self.new = Counter("gpt2_edge_new_tokens", "Tokens generated", of_model, registry=registry)
        self.scored = Counter(
            "gpt2_edge_scored_tokens", "Tokens of texts that were measured", of_model, registry=registry
        )
        self.ends = Counter(
            "gpt2_edge_continuations", "Continuations by what ended them", ["reason", "model"], registry=registry
        )
        self.first_token = Histogram(
            "gpt2_edge_first_token_seconds",
            "From request to the first token",
            of_model,
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge("gpt2_edge_running", "Continuations that decode now", of_model, registry=registry)
        self.waiting = Gauge("gpt2_edge_waiting", "Continuations that wait for a row", of_model, registry=registry)
        self.cache_bytes = Gauge(
            "gpt2_edge_prompt_cache_bytes", "Memory of the prompt cache", of_model, registry=registry
        )

    def of_model(self, model_id: str, gauges: ModelGauges) -> ModelMetrics:
        """The part of one model."""
        return ModelMetrics(self, model_id, gauges)

    def count_request(self, path: str, status: int, model_id: str, seconds: float) -> None:
        """A request that ended; `model_id` is empty where it was for no model."""
        self._requests.labels(path, str(status), model_id).inc()
        self._seconds.labels(model_id).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)


class ModelMetrics:
    """Counts and times of one model."""

    def __init__(self, server: ServerMetrics, model_id: str, gauges: ModelGauges) -> None:
        self.first_token = server.first_token.labels(model_id)
        self._model_id = model_id
        self._prompt = server.prompt.labels(model_id)
        self._cached = server.cached.labels(model_id)
        self._new = server.new.labels(model_id)
        self.scored = server.scored.labels(model_id)
        self._ends = server.ends
        server.running.labels(model_id).set_function(gauges.running)
        server.waiting.labels(model_id).set_function(gauges.waiting)
        server.cache_bytes.labels(model_id).set_function(gauges.cache_bytes)

    def count(self, completion: Completion, n_cached: int) -> None:
        """A continuation that ended, and how many tokens of its prompt were not computed again."""
        self._prompt.inc(completion.n_prompt_tokens)
        self._cached.inc(n_cached)
        self._new.inc(completion.n_tokens)
        self._ends.labels(completion.finish_reason, self._model_id).inc()
