"""transformers.js opens the model folder under Node and writes the same ids."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from runtime import complete
from tests.building import run

NODE = Path(__file__).with_name("node")
PROMPTS = ["Once upon a time there was a little mouse who", "¿Qué tal? The ", "a"]
N_NEW = 110


def node() -> str:
    """The program; skips the test where it or its packages are missing, but in continuous integration."""
    found = shutil.which("node")
    if found and (NODE / "node_modules" / "@huggingface" / "transformers").is_dir():
        return found
    missing = "Node 20 or newer and `npm ci --ignore-scripts` in tests/node are needed"
    assert "CI" not in os.environ, missing
    pytest.skip(missing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8"])
def test_transformers_js_writes_the_same_ids(name: str, request: pytest.FixtureRequest) -> None:
    program, model = node(), request.getfixturevalue(name)
    done = run(program, "generate.mjs", model.folder, str(N_NEW), *PROMPTS, cwd=NODE)
    assert done.returncode == 0, done.stderr
    ours = complete(PROMPTS, model=model, max_new_tokens=N_NEW)
    assert json.loads(done.stdout) == [one.ids for one in ours]
