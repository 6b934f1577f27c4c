"""What hatchling calls when it builds gpt2-edge-demo: it adds the built model and the demo's card to the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "gpt2_edge_demo"
MODEL = "demo-int8"
CARD = "SOURCES.md"


class ModelHook(BuildHookInterface[Any]):
    """Add models/demo-int8 and models/demo/README.md of the clone. A source distribution has both already."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See `BuildHookInterface`. version: standard or editable. Raises ValueError unless the model is complete."""
        if version == "editable":
            raise ValueError(
                "gpt2-edge-demo cannot be editable: in a clone `make demo` builds models/demo-int8 instead"
            )
        package = Path(self.root, PACKAGE)
        models = Path(self.root).parents[1] / "models"
        is_sdist = (package / MODEL).is_dir()
        model = (package if is_sdist else models) / MODEL
        card = package / CARD if is_sdist else models / "demo" / "README.md"
        # In this order in both cases, so that both wheels have the same bytes.
        for path in checked_files(model):
            build_data["force_include"][str(path)] = f"{PACKAGE}/{MODEL}/{path.name}"
        build_data["force_include"][str(card)] = f"{PACKAGE}/{CARD}"


def checked_files(model: Path) -> list[Path]:
    """The files of a model folder, in order. Raises ValueError if one is damaged, or the quality was not measured."""
    sums = model / "SHA256SUMS"
    if not sums.is_file():
        raise ValueError(f"no model at {model}: `make demo` in the clone builds it")
    files = [sums]
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        path = model / name
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{path} is damaged: `make demo` after deleting {model} builds it again")
        files.append(path)
    if not json.loads((model / "quality.json").read_text(encoding="utf-8"))["verified"]:
        raise ValueError(f"{model} was built with --verify none: `make demo` after deleting it builds it again")
    return sorted(files)
