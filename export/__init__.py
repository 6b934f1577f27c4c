"""The export stage: a GPT-2 checkpoint becomes a model folder. `export/build.py` is the command."""
