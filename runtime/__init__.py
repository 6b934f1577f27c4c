"""GPT-2 on a CPU: int8 ONNX models decoded with onnxruntime, tokenizers and numpy alone."""

from runtime.api import complete, evaluate, generate, load, perform, score, score_text, stream, stream_many
from runtime.completion import Completion
from runtime.model import Model
from runtime.scoring import Score

__all__ = [
    "Completion",
    "Model",
    "Score",
    "complete",
    "evaluate",
    "generate",
    "load",
    "perform",
    "score",
    "score_text",
    "stream",
    "stream_many",
]
__version__ = "0.1.0"
