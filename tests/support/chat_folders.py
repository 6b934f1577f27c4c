"""Model folders with a chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def chatty(folder: Path, source: Path, template: Any) -> Path:
    """A copy of a model folder, with a chat template."""
    shutil.copytree(source, folder)
    change_settings(folder, chat_template=template)
    return folder


def change_settings(folder: Path, **changes: Any) -> None:
    """Edit tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")
