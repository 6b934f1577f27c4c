"""GPT-2 on a CPU: int8 ONNX models decoded with onnxruntime, tokenizers and numpy alone."""

from runtime import telemetry  # noqa: F401  before onnxruntime is imported
from runtime.api import complete, generate, load, load_prefix, perform, prefix, stream, stream_many
from runtime.budget import estimate
from runtime.completion import Completion
from runtime.likelihood import evaluate, score, score_text
from runtime.model import Model
from runtime.scoring import Score
from runtime.shared_prefix import Prefix

__all__ = [
    "Completion",
    "Model",
    "Prefix",
    "Score",
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
]
__version__ = "0.1.0"
