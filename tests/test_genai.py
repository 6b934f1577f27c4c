"""onnxruntime-genai opens the model folder and writes the same ids."""

from __future__ import annotations

import os
from typing import Any

import pytest

from runtime import complete

PROMPTS = ["Once upon a time there was a little mouse who", "¿Qué tal? The ", "a"]
N_NEW = 110


def genai() -> Any:
    """The package; skips the test where it is missing, but in continuous integration."""
    if "CI" in os.environ:
        import onnxruntime_genai

        return onnxruntime_genai
    return pytest.importorskip("onnxruntime_genai")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8"])
def test_genai_writes_the_same_ids(name: str, request: pytest.FixtureRequest) -> None:
    model, og = request.getfixturevalue(name), genai()
    opened = og.Model(str(model.folder))
    tokenizer = og.Tokenizer(opened)
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert list(ids) == model.tokenizer.encode(prompt).ids
        parameters = og.GeneratorParams(opened)
        parameters.set_search_options(max_length=len(ids) + N_NEW)
        generator = og.Generator(opened, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        (ours,) = complete(prompt, model=model, max_new_tokens=N_NEW)
        assert list(generator.get_sequence(0)[len(ids) :]) == ours.ids
