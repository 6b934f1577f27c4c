"""A server under test and OpenAI's own client of it, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from runtime.model.model import Model
from tests.support.serving import Running
from tests.support.serving import server as server

openai = pytest.importorskip("openai")

PROMPT = "Once upon a time"
PROMPTS = [f"{PROMPT}, {who}" for who in ("a king", "the wolf", "she", "an old man, who", "it", "we", "no one", "God")]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def model_id(demo_int8: Model) -> str:
    return demo_int8.folder.name


def ours(choice: Any) -> dict[str, Any]:
    """What OpenAI's reply has no place for."""
    details: dict[str, Any] = choice.gpt2_edge
    return details
