"""GPT-2 on a CPU: int8 ONNX models decoded with onnxruntime, tokenizers and numpy alone."""

from __future__ import annotations

import importlib

# Before onnxruntime is imported: this switches its telemetry off.
from runtime import _telemetry  # noqa: F401

# Type checkers take this as true. `typing` itself takes time to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.api import (
        classify,
        complete,
        embed,
        evaluate,
        generate,
        infill,
        load,
        load_prefix,
        perform,
        prefix,
        score,
        score_text,
        stream,
        stream_many,
        surprisal,
    )
    from runtime.errors import (
        ContextLengthError,
        MemoryBudgetError,
        ModelFolderError,
        NoModelError,
        NoTokenError,
        NoTokenizerError,
        OptionError,
        PrefixFileError,
    )
    from runtime.generation.completion import Completion
    from runtime.generation.session import Session
    from runtime.model.memory import estimate
    from runtime.model.model import Model
    from runtime.prefixes.prefix import Prefix
    from runtime.scoring.scoring import Score
    from runtime.scoring.surprisal import Surprisal

__all__ = [
    "Completion",
    "ContextLengthError",
    "MemoryBudgetError",
    "Model",
    "ModelFolderError",
    "NoModelError",
    "NoTokenError",
    "NoTokenizerError",
    "OptionError",
    "Prefix",
    "PrefixFileError",
    "Score",
    "Session",
    "Surprisal",
    "classify",
    "complete",
    "embed",
    "estimate",
    "evaluate",
    "generate",
    "infill",
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
    "Session": "generation.session",
    "Surprisal": "scoring.surprisal",
    "estimate": "model.memory",
}


if not TYPE_CHECKING:
    # Type checkers must not see it: a misspelt name would be an object to them, and no error.
    def __getattr__(name: str) -> object:
        """A public name, imported at its first use: numpy and onnxruntime take a quarter of a second.

        The command can therefore prepare for Ctrl-C before they are imported.
        """
        if name not in __all__:
            raise AttributeError(f"module 'runtime' has no attribute {name!r}")
        module = "errors" if name.endswith("Error") else _MODULES.get(name, "api")
        value = globals()[name] = getattr(importlib.import_module(f"runtime.{module}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
