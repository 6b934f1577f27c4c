"""Reading JSON with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.errors import ModelFolderError

# Larger than the vocabulary of any tokenizer as JSON.
MAX_BYTES = 256 << 20
_MAX_SHOWN = 60  # characters of a value in an error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises FileNotFoundError, or ValueError naming the file for anything else, and for more than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing; a model folder has one (python export/build.py makes model folders)"
        ) from None
    if len(data) > MAX_BYTES:
        raise ModelFolderError(f"{path} has more than {MAX_BYTES:,} bytes, which no JSON file of a model has")
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The object in the content of a JSON file. Raises ValueError, naming the file, for anything else."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} is not a JSON object")
    return value


def shown(value: object) -> str:
    """A value of a file in an error: its beginning, where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes no number of thousands of digits.
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
