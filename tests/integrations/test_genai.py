"""onnxruntime-genai opens the model folder and writes the same ids."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.support.other_runtimes import N_NEW, NEAR_TIE, PROMPTS, check_same_ids


def genai() -> Any:
    """The package; skips the test where it is missing, but in continuous integration."""
    if "CI" in os.environ:
        import onnxruntime_genai

        return onnxruntime_genai
    return pytest.importorskip("onnxruntime_genai")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_int4"])
def test_genai_writes_the_same_ids(name: str, request: pytest.FixtureRequest) -> None:
    model, og = request.getfixturevalue(name), genai()
    opened = og.Model(str(model.folder))
    tokenizer = og.Tokenizer(opened)
    written = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert list(ids) == model.tokenizer.encode(prompt).ids
        parameters = og.GeneratorParams(opened)
        parameters.set_search_options(max_length=len(ids) + N_NEW)
        generator = og.Generator(opened, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        written.append(list(generator.get_sequence(0)[len(ids) :]))
    check_same_ids(written, model, NEAR_TIE[name])
