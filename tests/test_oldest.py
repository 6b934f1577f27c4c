"""The runtime with the oldest versions that pyproject.toml allows, in an environment of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from runtime.api import generate
from runtime.model import Model
from tests.building import REPOSITORY

PROMPT = "Once upon a time there was a little mouse who"
SCRIPT = """
import sys, runtime
from runtime.check import check_folder
from pathlib import Path
with runtime.load(sys.argv[1]) as model:
    print(runtime.generate(sys.argv[3], model=model, max_new_tokens=24))
for folder in sys.argv[1:3]:
    assert check_folder(Path(folder)).passed, check_folder(Path(folder))
"""


def oldest() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", need) for need in project["dependencies"]]
    return [f"{match[1]}=={match[2]}.*" for match in found if match]


@pytest.mark.slow
def test_oldest_dependencies_write_the_same(
    tmp_path: Path, demo_fp32: Model, demo_fp32_folder: Path, demo_int8_folder: Path
) -> None:
    venv.create(tmp_path / "oldest", with_pip=True)
    python = tmp_path / "oldest" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [str(python), "-m", "pip", "install", "--quiet", *oldest()]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode and "CI" not in os.environ:
        pytest.skip(f"the oldest versions cannot be installed here (Python {sys.version_info[:2]}): {installed.stderr}")
    assert installed.returncode == 0, installed.stderr
    command = [str(python), "-c", SCRIPT, str(demo_fp32_folder), str(demo_int8_folder), PROMPT]
    done = subprocess.run(command, capture_output=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().rstrip("\r\n") == generate(PROMPT, model=demo_fp32, max_new_tokens=24)
