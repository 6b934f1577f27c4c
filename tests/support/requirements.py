"""What pyproject.toml asks for; the server's own pyproject.toml included."""

from __future__ import annotations

import tomllib
from typing import Any

from packaging.requirements import Requirement

from tests.support.building import REPOSITORY


def _read(*folder: str) -> dict[str, Any]:
    return tomllib.loads(REPOSITORY.joinpath(*folder, "pyproject.toml").read_text(encoding="utf-8"))


RUNTIME = _read()
SERVER = _read("runtime", "server")
DEMO = _read("packages", "demo")


def asked(*extras: str) -> list[Requirement]:
    """What the runtime and some extras require, of extras of extras too; this project's own names are resolved."""
    project, needs = RUNTIME["project"], list[Requirement]()
    texts = project["dependencies"] + [need for extra in extras for need in project["optional-dependencies"][extra]]
    for need in map(Requirement, texts):
        if need.name == "gpt2-edge":
            needs += asked(*sorted(need.extras))
        elif need.name == "gpt2-edge-server":
            server = map(Requirement, SERVER["project"]["dependencies"])
            needs += [own for own in server if own.name != "gpt2-edge"]
        elif need.name == "gpt2-edge-demo":
            # It requires the runtime alone.
            continue
        else:
            needs.append(need)
    return needs
