"""The command gpt2-edge."""

from runtime.cli.parser import main

__all__ = ["main"]
