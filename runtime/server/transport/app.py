"""The ASGI application and its routes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

import runtime
from runtime.model.model import Model
from runtime.server.analysis import classify, embeddings, surprisal, tokens
from runtime.server.engine.engine import Engine
from runtime.server.engine.engines import Engines, find_engine
from runtime.server.errors import add_handlers, server_error
from runtime.server.openai import chat, completions
from runtime.server.openai.reply import ERRORS
from runtime.server.transport import page
from runtime.server.transport.guard import Guard
from runtime.server_settings import Settings

router = APIRouter()


class ModelCard(BaseModel):
    """A model that is served.

    max_model_len: tokens of prompt and continuation together. max_tokens: the most new tokens of a request. chat:
    whether the model has a chat template. labels: of a classifier, which /classify serves; null for a language model.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["gpt2-edge"] = "gpt2-edge"
    max_model_len: int
    max_tokens: int
    chat: bool
    labels: list[str] | None


class ModelList(BaseModel):
    """The models that are served; the first is the default."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The answer of a server that decodes."""

    status: Literal["ok"] = "ok"


def make_app(models: Sequence[Model], settings: Settings) -> FastAPI:
    """The ASGI application that serves models; its lifespan starts and ends the engines' threads.

    Raises ValueError for settings that do not fit the models.
    """
    engines = Engines(models, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engines.start()
        yield
        engines.close()

    app = FastAPI(
        title="gpt2-edge",
        version=runtime.__version__,
        description="OpenAI's completions protocol for a GPT-2 on this machine.",
        lifespan=lifespan,
        # FastAPI's pages of documentation load scripts from other servers.
        docs_url=None,
        redoc_url=None,
    )
    app.state.engines = engines
    for part in (completions, chat, embeddings, classify, tokens, surprisal, page):
        app.include_router(part.router)
    app.include_router(router)
    app.add_middleware(Guard, settings=settings)
    add_handlers(app)
    return app


def _card(engine: Engine) -> ModelCard:
    head = engine.model.config.head
    return ModelCard(
        id=engine.model_id,
        created=engine.created,
        max_model_len=engine.model.config.n_positions,
        max_tokens=engine.settings.max_tokens,
        chat=engine.chat_template is not None and head is None,
        labels=None if head is None else list(head.labels),
    )


@router.get("/v1/models", responses=ERRORS)
async def list_models(request: Request) -> ModelList:
    """The models that are served; requests without a model are for the first."""
    engines: Engines = request.app.state.engines
    return ModelList(data=[_card(engine) for engine in engines])


# An alias may have slashes, as names on the hub have.
@router.get("/v1/models/{model:path}", responses=ERRORS)
async def retrieve_model(model: str, request: Request) -> ModelCard:
    """A model that is served, by its name."""
    return _card(find_engine(request, model))


@router.get("/health", responses=ERRORS)
async def health(request: Request) -> Health:
    """Whether the server answers and decodes; 503 if its decoding thread has ended, or does not respond."""
    engines: Engines = request.app.state.engines
    if ended := engines.ended:
        told = f"the decoding thread of {', '.join(ended)} has ended, or does not answer: start the server again"
        raise server_error(told, 503)
    return Health()


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **ERRORS})
async def metrics(request: Request) -> Response:
    """Counts and times for Prometheus."""
    engines: Engines = request.app.state.engines
    return Response(engines.metrics.text(), media_type=CONTENT_TYPE_LATEST)
