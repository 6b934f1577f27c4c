"""transformers.js opens the model folder under Node and writes the same ids."""

from __future__ import annotations

import json

import pytest

from tests.support.building import run
from tests.support.other_runtimes import N_NEW, NEAR_TIE, PROMPTS, check_same_ids, node


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_int4"])
def test_transformers_js_writes_the_same_ids(name: str, request: pytest.FixtureRequest) -> None:
    program, here = node()
    model = request.getfixturevalue(name)
    done = run(program, "generate.mjs", model.folder, str(N_NEW), *PROMPTS, cwd=here)
    assert done.returncode == 0, done.stderr
    check_same_ids(json.loads(done.stdout), model, NEAR_TIE[name])
