"""/v1/embeddings, as OpenAI's: https://platform.openai.com/docs/api-reference/embeddings."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, Field

from runtime.heads.embedding import Embedding, embed_ids
from runtime.heads.inputs import ids_of_text
from runtime.server.analysis.inputs import SeveralIds, Texts, as_texts, check_reply_size, reading_input
from runtime.server.engine.engine import Engine
from runtime.server.engine.engines import find_engine
from runtime.server.errors import ApiError
from runtime.server.json_route import JsonRoute
from runtime.server.openai.exchange import json_response, while_connected
from runtime.server.openai.fields import Fields, Ids
from runtime.server.openai.reply import ERRORS

router = APIRouter(route_class=JsonRoute)
# Bytes of one number in the reply, at most.
_NUMBER_BYTES = 24


def _no_dimensions(given: object) -> object:
    if given is not None:
        raise ValueError("embeddings of this model have the width of its hidden states and cannot be cut; leave it out")
    return given


class EmbeddingRequest(Fields):
    """Texts, or their token ids."""

    input: str | Texts | Ids | SeveralIds
    model: str | None = Field(None, description="the model that is served, or null")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="numbers, which is the default, or the bytes of little-endian float32 in base64"
    )
    pooling: Literal["mean", "last"] | None = Field(
        None, description="of the hidden states of a text: their mean, which is the default, or the last one"
    )
    dimensions: Annotated[None, BeforeValidator(_no_dimensions)] = Field(
        None, description="null: embeddings cannot be shortened"
    )
    user: str | None = Field(None, description="for clients that send it; nothing is done with it")


class EmbeddingEntry(BaseModel):
    """The embedding of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(BaseModel):
    """The embeddings of the texts, in their order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingUsage


@router.post("/v1/embeddings", response_model=EmbeddingReply, responses=ERRORS)
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """The hidden states of the last layer, pooled over the tokens of each text."""
    engine = find_engine(request, body.model)
    engine.check_writes()
    texts = as_texts(engine, body.input)
    check_reply_size(engine, _NUMBER_BYTES * len(texts) * engine.model.config.n_embd)
    with engine.admit(1) as job, reading_input():

        def read() -> list[list[int]]:
            return [ids_of_text(engine.model, text, f"input[{index}]") for index, text in enumerate(texts)]

        rows = await while_connected(request, engine.prepare(job, read))
        pooling = body.pooling or "mean"
        model = engine.model_of(job)
        found = await while_connected(request, engine.run_aside(job, lambda: embed_ids(model, rows, pooling)))
        n_tokens = sum(map(len, rows))
        written = engine.write(job, lambda: _write(engine, body, found, n_tokens))
        return json_response(await while_connected(request, written))


def _write(engine: Engine, body: EmbeddingRequest, found: Embedding, n_tokens: int) -> str:
    if not np.isfinite(found).all():
        raise ApiError("the model's hidden states are not finite: its weights are damaged", status=500)
    as_text = body.encoding_format == "base64"
    entries = [
        EmbeddingEntry(index=index, embedding=_base64(one) if as_text else one.tolist())
        for index, one in enumerate(found)
    ]
    usage = EmbeddingUsage(prompt_tokens=n_tokens, total_tokens=n_tokens)
    return EmbeddingReply(data=entries, model=engine.model_id, usage=usage).model_dump_json()


def _base64(embedding: Embedding) -> str:
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode("ascii")
