"""GPT-2 on a CPU: int8 ONNX models decoded with onnxruntime, tokenizers and numpy alone."""

from runtime.api import generate, load, score_text, stream
from runtime.model import Model
from runtime.scoring import Score

__all__ = ["Model", "Score", "generate", "load", "score_text", "stream"]
__version__ = "0.1.0"
