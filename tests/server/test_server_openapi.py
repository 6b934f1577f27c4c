"""The description of the API: what it promises of every request, tried on many by schemathesis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from runtime.model.model import Model
from runtime.server.openai.fields import CompletionRequest, TaskFields
from runtime.tasks.library import TASKS
from tests.support.serving import Running, running

OPERATIONS = (
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/classify"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/surprisal"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health"),
    ("GET", "/metrics"),
)
N_EXAMPLES = 100


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8, max_tokens=24, timeout=5) as one:
        yield one


@pytest.fixture(scope="module")
def description(server: Running) -> dict[str, Any]:
    reply: dict[str, Any] = server.request("GET", "/openapi.json").json
    return reply


def test_every_address_is_described(description: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, of in description["paths"].items() for method in of}
    assert described == {*OPERATIONS}


def test_every_field_of_a_task_is_there() -> None:
    assert {name for task in TASKS.values() for name in task.fields} < TaskFields.model_fields.keys()
    assert TaskFields.model_fields.keys() < CompletionRequest.model_fields.keys()


def test_errors_have_openais_shape_everywhere(description: dict[str, Any]) -> None:
    for method, path in OPERATIONS:
        (content,) = description["paths"][path][method.lower()]["responses"]["default"]["content"].values()
        assert content["schema"] == {"$ref": "#/components/schemas/ErrorReply"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*operation, "positive") for operation in OPERATIONS]
    + [(method, path, "negative") for method, path in OPERATIONS if method == "POST"],  # others take nothing
)
def test_the_description_holds(server: Running, description: dict[str, Any], method: str, path: str, mode: str) -> None:
    """No request fails the server, every reply is as described, and what is not described is refused."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis import GenerationMode, checks

    operation = schemathesis.openapi.from_dict(description)[path][method]
    cases = operation.as_strategy(generation_mode=GenerationMode(mode))

    @settings(
        max_examples=N_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def holds(case: Any) -> None:
        # fields may be right each and contradict each other, which is refused
        case.call_and_validate(base_url=server.url, excluded_checks=[checks.positive_data_acceptance], timeout=30)

    holds()
    assert json.loads(server.request("GET", "/health").body) == {"status": "ok"}
