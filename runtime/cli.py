"""The command `gpt2-edge`: text to standard output, everything else to standard error."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence

import runtime
from runtime.options import Options

_EXAMPLES = """\
example:
  gpt2-edge generate "Once upon a time" --model models/demo-int8 --temperature 0.8 --top-p 0.9
  echo "Once upon a time" | gpt2-edge generate -
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 when it failed, 130 when interrupted; wrong usage exits with 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")  # a Windows console's own encoding lacks most characters
    parser = argument_parser()
    given = parser.parse_args(arguments)
    try:
        options = Options(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Options)})
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    try:
        generate(given, options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, say `head`, has what it wanted
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  else the exit flushes into the pipe
        return 1
    except (OSError, TypeError, ValueError) as error:
        print(f"gpt2-edge: error: {error}", file=sys.stderr)
        return 1
    return 0


def generate(given: argparse.Namespace, options: Options) -> None:
    """Write the continuation of a prompt as it is decoded."""
    prompt = sys.stdin.buffer.read().decode("utf-8") if given.prompt == "-" else given.prompt
    with contextlib.closing(runtime.load(given.model, threads=given.threads)) as model:
        for piece in runtime.stream(prompt, model=model, **dataclasses.asdict(options)):
            print(piece, end="", flush=True)
        print()


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpt2-edge", description=runtime.__doc__)
    parser.add_argument("--version", action="version", version=f"gpt2-edge {runtime.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "generate",
        help="continue a prompt",
        description="Continue a prompt: the continuation streams to standard output.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("prompt", help="the text to continue; - reads standard input")
    add = command.add_argument
    add("--model", metavar="FOLDER", help="model folder (default: $GPT2_EDGE_MODEL, else the only one under ./models)")
    add("--threads", type=int, metavar="N", help="threads of one pass (default: every core)")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="at most this many tokens (default: 64)")
    about = "0 is greedy, 1 the model's own distribution (default: 0)"
    add("--temperature", type=float, default=0.0, metavar="T", help=about)
    add("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens; 0 is off (default)")
    about = "sample from the likeliest tokens that reach probability P; 1 is off (default)"
    add("--top-p", type=float, default=1.0, metavar="P", help=about)
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    add("--seed", type=int, metavar="N", help="same seed, same text (default: a new one each time)")
    return parser
