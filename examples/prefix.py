"""Compute the common beginning of many prompts once: python examples/prefix.py [MODEL FOLDER]."""

import sys
import tempfile
from pathlib import Path

import runtime

folder = sys.argv[1] if len(sys.argv) > 1 else "models/demo-int8"
beginning = "Once upon a time there was a king who had three sons, and each of them wanted the crown. " * 16

with runtime.load(folder) as model:
    prefix = runtime.prefix(beginning, model=model)
    print(f"{len(prefix.ids)} tokens, {prefix.n_kept} of them computed once for all prompts")  # multiples of 256

    # The prompt is given whole; the text is the same as without the prefix.
    for son in ("The eldest", "The second", "The youngest"):
        print(son + runtime.generate(beginning + son, model=model, prefix=prefix, max_new_tokens=16))

    # It can be kept on disk, for the same model on the same kind of processor.
    with tempfile.TemporaryDirectory() as place:
        prefix.save(Path(place) / "king.prefix")
        loaded = runtime.load_prefix(Path(place) / "king.prefix", model=model)
        assert loaded.ids == prefix.ids
