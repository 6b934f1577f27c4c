"""The demo model of gpt2-edge. `runtime` finds it where no other model is named.

>>> import runtime
>>> model = runtime.load(FOLDER)
"""

from pathlib import Path

__all__ = ["FOLDER"]

FOLDER = Path(__file__).with_name("demo-int8")
"""The model folder."""
