"""Print a text while it is written: python examples/stream.py [MODEL FOLDER]."""

import sys

import runtime

folder = sys.argv[1] if len(sys.argv) > 1 else "models/demo-int8"
prompt = "Once upon a time there was a little mouse who"

with runtime.load(folder) as model:
    print(prompt, end="")
    # The pieces join to what runtime.generate returns, and no piece ends inside a character.
    for piece in runtime.stream(prompt, model=model, max_new_tokens=120, temperature=0.7, top_p=0.9, seed=7):
        print(piece, end="", flush=True)
    print()
