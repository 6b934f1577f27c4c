"""The models that are served: each has an engine of its own, and requests choose one by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from fastapi import Request

from runtime.model.model import Model
from runtime.server.engine.engine import Engine
from runtime.server.engine.metrics import ServerMetrics
from runtime.server.engine.prompt_cache import BlockStore
from runtime.server.errors import ApiError, short
from runtime.server_settings import Settings


class Engines:
    """The engines by the names of their models; the first is the default.

    Each model has rows, a queue and a decoding thread of its own. They share the memory of the prompt cache.
    """

    def __init__(self, models: Sequence[Model], settings: Settings) -> None:
        """Raises ValueError for names that do not tell the models apart, and what `Engine` raises."""
        names = model_names(models, settings.aliases)
        blocks = BlockStore(settings.prompt_cache_bytes)
        self.metrics = ServerMetrics()
        # Large requests are parsed one after the other: see `runtime.server.json_route`.
        self.reading = asyncio.Lock()
        self._engines = {
            name: Engine(model, name, settings, blocks, self.metrics) for name, model in zip(names, models, strict=True)
        }

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines.values())

    @property
    def names(self) -> list[str]:
        """The names of the models, the default first."""
        return list(self._engines)

    @property
    def default(self) -> Engine:
        """The engine of requests that name no model."""
        return next(iter(self))

    def find(self, name: str | None) -> Engine:
        """The engine of the model with this name; None is the default. Raises ApiError where there is none."""
        if name is None:
            return self.default
        if name in self._engines:
            return self._engines[name]
        served = ", ".join(map(repr, self._engines))
        told = f"there is no model {short(name)} here; {served} {'is' if len(self._engines) == 1 else 'are'} served"
        raise ApiError(told, status=404, param="model", code="model_not_found")

    @property
    def n_open(self) -> int:
        """Continuations and texts under way or waiting, of all models."""
        return sum(engine.n_open for engine in self)

    @property
    def ended(self) -> list[str]:
        """The names of the models whose requests are not decoded any more."""
        return [engine.model_id for engine in self if not engine.is_alive]

    def start(self) -> None:
        """Begin to decode, in the event loop that serves."""
        for engine in self:
            engine.start()

    def stop_all(self) -> None:
        """End every request where it is."""
        for engine in self:
            engine.stop_all()

    def close(self) -> None:
        """End the threads; requests must have ended."""
        for engine in self:
            engine.close()


def find_engine(request: Request, model: str | None) -> Engine:
    """The engine of the model that a request names. Raises ApiError where there is none.

    Everything that a route does is with this engine, and metrics count the request for its model.
    """
    engines: Engines = request.app.state.engines
    engine = engines.find(model)
    request.state.model = engine.model_id
    return engine


def model_names(models: Sequence[Model], aliases: Sequence[str]) -> list[str]:
    """The names of models: the aliases, or else the names of their folders.

    Raises ValueError where aliases are missing or too many, and where two models have the same name.
    """
    if aliases and len(aliases) != len(models):
        told = f"the models are {len(models)}: give one name for each, in their order, or none"
        raise ValueError(f"--alias is {', '.join(map(repr, aliases))}, and {told}")
    names = list(aliases) or [model.folder.resolve().name for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        folders = " and ".join(str(model.folder) for name, model in zip(names, models, strict=True) if name == twice)
        raise ValueError(f"{folders} have the same name, {twice!r}; give each model an --alias of its own")
    return names
