"""/tokenize and /detokenize, in the form of llama.cpp's server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from runtime.model.tokenizer.detokenizer import Detokenizer
from runtime.server.engine.engine import Engine
from runtime.server.engine.engines import find_engine
from runtime.server.errors import ApiError, context_error, preparing
from runtime.server.json_route import JsonRoute
from runtime.server.openai.exchange import json_response, while_connected
from runtime.server.openai.fields import Fields, TokenId
from runtime.server.openai.plan import ENTRY_BYTES
from runtime.server.openai.reply import ERRORS
from runtime.tokenization.encode import encode, encode_whole

router = APIRouter(route_class=JsonRoute)


MODEL = "a model that /v1/models lists; null is the first"


class TokenizeRequest(Fields):
    """A text."""

    model: str | None = Field(None, description=MODEL)
    content: str
    add_special: bool | None = Field(None, description="with what the tokenizer puts around a text; default false")
    parse_special: bool | None = Field(
        None, description="read special tokens that are written in the text as tokens; default true, as llama.cpp's"
    )
    with_pieces: bool | None = Field(None, description="tell the text of each token; default false")


class TokenPiece(BaseModel):
    """A token and its text; its bytes, where they are a part of a character."""

    id: int
    piece: str | list[int]


class TokenizeReply(BaseModel):
    """The ids of a text, or its tokens."""

    tokens: list[int] | list[TokenPiece]


class DetokenizeRequest(Fields):
    """Ids."""

    model: str | None = Field(None, description=MODEL)
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class DetokenizeReply(BaseModel):
    """The text of ids, special tokens written out."""

    content: str


@router.post("/tokenize", response_model=TokenizeReply, responses=ERRORS)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The ids of a text."""
    engine = find_engine(request, body.model)
    _check_size(engine, "content", len(body.content), "characters")
    return await _answer(request, engine, lambda: _tokenize(engine, body))


@router.post("/detokenize", response_model=DetokenizeReply, responses=ERRORS)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of ids."""
    engine = find_engine(request, body.model)
    _check_size(engine, "tokens", len(body.tokens), "ids")
    n_vocab = engine.model.config.vocab_size
    if (largest := max(body.tokens, default=0)) >= n_vocab:
        raise ApiError(f"token id {largest} in tokens is outside the vocabulary of {n_vocab}", param="tokens")
    return await _answer(request, engine, lambda: _detokenize(engine, body))


def _check_size(engine: Engine, field: str, n: int, what: str) -> None:
    """Refuse what is longer than any prompt: the tokenizer takes more than linear time for a long word."""
    if n > engine.max_characters:
        told = f"{field} is {n:,} {what}; at most {engine.max_characters:,} are read at once: send it in parts"
        raise context_error(told, engine.model.config.n_positions, field)


async def _answer(request: Request, engine: Engine, work: Callable[[], BaseModel]) -> Response:
    """The reply that `work` makes in a thread, while the client is connected."""
    with engine.admit(1) as job, preparing():
        written = engine.prepare(job, lambda: work().model_dump_json())
        return json_response(await while_connected(request, written))


def _tokenize(engine: Engine, body: TokenizeRequest) -> TokenizeReply:
    encode_it = encode_whole if body.add_special else encode
    ids = encode_it(engine.model, body.content, special_tokens=body.parse_special is not False)
    # A token with its piece is larger than the text that it is of.
    if body.with_pieces and (n := len(ids) * ENTRY_BYTES) > (most := engine.settings.max_reply_bytes):
        told = f"the reply may have {n:,} bytes; this server's limit is {most:,}: leave out with_pieces"
        raise ApiError(told, param="with_pieces", code="reply_too_large")
    if not body.with_pieces:
        return TokenizeReply(tokens=ids)
    pieces = zip(ids, engine.names.pieces(ids), strict=True)
    return TokenizeReply(tokens=[TokenPiece(id=id_, piece=piece) for id_, piece in pieces])


def _detokenize(engine: Engine, body: DetokenizeRequest) -> DetokenizeReply:
    detokenizer = Detokenizer(engine.model.tokenizer, skip_special_tokens=False)
    return DetokenizeReply(content=detokenizer.decode(body.tokens))
