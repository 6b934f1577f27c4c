"""transformers.js opens the model folder under Node and writes the same ids."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.building import run
from tests.support.other_runtimes import N_NEW, NEAR_TIE, PROMPTS, check_same_ids

NODE = Path(__file__).parents[1] / "node"


def node() -> str:
    """The program; skips the test where it or its packages are missing, but in continuous integration."""
    found = shutil.which("node")
    if found and (NODE / "node_modules" / "@huggingface" / "transformers").is_dir():
        return found
    missing = "Node 20 or newer and `npm ci --ignore-scripts` in tests/node are needed"
    assert "CI" not in os.environ, missing
    pytest.skip(missing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_int4"])
def test_transformers_js_writes_the_same_ids(name: str, request: pytest.FixtureRequest) -> None:
    program, model = node(), request.getfixturevalue(name)
    done = run(program, "generate.mjs", model.folder, str(N_NEW), *PROMPTS, cwd=NODE)
    assert done.returncode == 0, done.stderr
    check_same_ids(json.loads(done.stdout), model, NEAR_TIE[name])
