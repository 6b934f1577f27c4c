"""/classify: the labels that a classifier gives texts, or their tokens."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from runtime.graph.head import TOKEN
from runtime.heads.classification import as_json, classify
from runtime.server.analysis.inputs import SeveralIds, Texts, as_texts, check_reply_size, reading_input
from runtime.server.engine.engines import find_engine
from runtime.server.errors import ApiError
from runtime.server.json_route import JsonRoute
from runtime.server.openai.exchange import json_response, while_connected
from runtime.server.openai.fields import Fields, Ids
from runtime.server.openai.reply import ERRORS

router = APIRouter(route_class=JsonRoute)
# Bytes of one score or one token in the reply, without its label, at most.
_ENTRY_BYTES = 160


class ClassifyRequest(Fields):
    """Texts, or their token ids."""

    input: str | Texts | Ids | SeveralIds
    model: str | None = Field(None, description="the model that is served, or null")


class LabelScore(BaseModel):
    """A label with its probability; a value in a regression."""

    label: str
    score: float


class LabelledToken(BaseModel):
    """A token, its characters in the text, and its likeliest label."""

    text: str
    span: tuple[int, int]
    id: int
    label: str
    score: float


class LabelledPart(BaseModel):
    """Neighbouring tokens of one label; score: their mean."""

    text: str
    span: tuple[int, int]
    label: str
    score: float


class TextResult(BaseModel):
    """The likeliest label of a text, and the scores of all."""

    label: str
    score: float
    scores: list[LabelScore]


class TokensResult(BaseModel):
    """The labels of the tokens of a text."""

    tokens: list[LabelledToken]
    spans: list[LabelledPart]


class ClassifyReply(BaseModel):
    """A result for each text, in their order."""

    results: list[TextResult] | list[TokensResult]


@router.post("/classify", response_model=ClassifyReply, responses=ERRORS)
async def classify_texts(body: ClassifyRequest, request: Request) -> Response:
    """The labels of texts, where the model that is served is a classifier."""
    engine = find_engine(request, body.model)
    head = engine.model.config.head
    if head is None:
        told = "this model is a language model and labels nothing; a classifier's folder does: see /v1/models"
        raise ApiError(told, code="not_a_classifier")
    texts = as_texts(engine, body.input)
    # Tokens and spans of a text are at most twice as many as its positions.
    n_entries = 2 * engine.model.config.n_positions if head.kind == TOKEN else len(head.labels)
    n_bytes = (_ENTRY_BYTES + max(map(len, head.labels))) * n_entries
    check_reply_size(engine, len(texts) * n_bytes)
    with engine.admit(1) as job, reading_input():
        model = engine.model_of(job)

        def label() -> str:
            results = [as_json(one) for one in classify(model, texts, name="input")]
            return ClassifyReply.model_validate({"results": results}).model_dump_json()

        return json_response(await while_connected(request, engine.run_aside(job, label)))
