"""A Hugging Face checkpoint of GPT-2 as numpy arrays: all that peers without torch need of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open


class Checkpoint:
    """`config`, and tensors by GPT-2's own names, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        files = [safe_open(path, framework="numpy") for path in sorted(folder.glob("*.safetensors"))]
        names = ((file, name) for file in files for name in file.keys())  # noqa: SIM118  (it is no dict)
        self._files = {name.removeprefix("transformer."): (file, name) for file, name in names}

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored = self._files[name]
        return file.get_tensor(stored).astype(np.float32)
