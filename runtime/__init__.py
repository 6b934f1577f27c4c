"""GPT-2 on a CPU: int8 ONNX models decoded with onnxruntime, tokenizers and numpy alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from runtime import _telemetry  # noqa: F401  before onnxruntime is imported

if TYPE_CHECKING:
    from runtime.api import complete, generate, load, load_prefix, perform, prefix, stream, stream_many
    from runtime.generation.completion import Completion
    from runtime.likelihood import evaluate, score, score_text, surprisal
    from runtime.model.memory import estimate
    from runtime.model.model import Model
    from runtime.prefixes.prefix import Prefix
    from runtime.scoring.scoring import Score
    from runtime.scoring.surprisal import Surprisal

__all__ = [
    "Completion",
    "Model",
    "Prefix",
    "Score",
    "Surprisal",
    "complete",
    "estimate",
    "evaluate",
    "generate",
    "load",
    "load_prefix",
    "perform",
    "prefix",
    "score",
    "score_text",
    "stream",
    "stream_many",
    "surprisal",
]
__version__ = "0.1.0"
_MODULES = {
    "Completion": "generation.completion",
    "Model": "model.model",
    "Prefix": "prefixes.prefix",
    "Score": "scoring.scoring",
    "Surprisal": "scoring.surprisal",
    "estimate": "model.memory",
    "evaluate": "likelihood",
    "score": "likelihood",
    "score_text": "likelihood",
    "surprisal": "likelihood",
}


def __getattr__(name: str) -> object:
    """A public name, imported at its first use: numpy and onnxruntime take a quarter of a second.

    The command can therefore prepare for Ctrl-C before they are imported.
    """
    if name not in __all__:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"runtime.{_MODULES.get(name, 'api')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
