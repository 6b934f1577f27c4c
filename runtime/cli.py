"""The command `gpt2-edge`: text to standard output, everything else to standard error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import runtime
from runtime import commands
from runtime.arguments import add_model_arguments, add_option_arguments, read_usage

_EXAMPLES = {
    "generate": """\
  gpt2-edge generate "Once upon a time" --temperature 0.8 --top-p 0.9
  printf "Once upon a time" | gpt2-edge generate -""",
    "complete": """\
  gpt2-edge complete "One day" "At night" --n 3 --temperature 0.9 --json""",
    "check": """\
  gpt2-edge check models/demo-int8""",
    "info": """\
  gpt2-edge info models/demo-int8""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 when it failed, 130 when interrupted; wrong usage exits with 2."""
    if sys.stdout is None:  # closed: nobody wants the text
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")  # a Windows console's own encoding lacks most characters
    given = argument_parser().parse_args(arguments)
    try:
        read_usage(given)
    except (TypeError, ValueError) as error:
        given.parser.error(str(error))
    return _run(given)


def _run(given: argparse.Namespace) -> int:
    try:
        status: int = given.command(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, say `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit would flush into the pipe
        return 1
    except (OSError, TypeError, ValueError) as error:
        print(f"gpt2-edge: error: {error}", file=sys.stderr)
        return 1
    return status


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpt2-edge", description=runtime.__doc__)
    parser.add_argument("--version", action="version", version=f"gpt2-edge {runtime.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    one = _add(subparsers, "generate", "continue a prompt as it is decoded", commands.generate)
    about = "the text to continue; - reads standard input; without it a terminal asks for prompts"
    one.add_argument("prompt", nargs="?", help=about)
    add_model_arguments(one)
    add_option_arguments(one)

    many = _add(subparsers, "complete", "continue several prompts together", commands.complete)
    many.add_argument("prompts", nargs="*", help="the texts to continue; - reads one a line from standard input")
    many.add_argument("--n", type=int, default=1, metavar="N", help="samples for each prompt (default: 1)")
    many.add_argument("--logprobs", type=int, default=0, metavar="N", help="alternatives to show for each token")
    add_model_arguments(many)
    add_option_arguments(many)

    check = _add(subparsers, "check", "whether this device runs a model as it should", commands.check)
    check.add_argument("folder", nargs="?", help="model folder (default: as for --model)")
    check.add_argument("--threads", type=int, metavar="N", help="threads of one pass (default: every core)")
    check.add_argument("--json", action="store_true", help="print the result as JSON")

    info = _add(subparsers, "info", "what a model folder holds, and what this processor is", commands.info)
    info.add_argument("folder", nargs="?", help="model folder (default: as for --model)")
    info.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _add(subparsers: argparse._SubParsersAction, name: str, about: str, command: object) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"example:\n{_EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command, parser=parser)
    return parser
