"""Options as command-line arguments: each follows from its kind, default and meaning in `runtime.options`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from runtime._checks import check_count
from runtime._kinds import add_argument
from runtime._suggestion import suggest
from runtime.cli.interactive import SAMPLING, is_at_terminal
from runtime.cli.output import in_words_of_command_line
from runtime.options import OPTIONS, check_seed, make_options

NOT_ON_THE_COMMAND_LINE = ("cancel", "logits_processor")  # Ctrl-C ends a text; a function has no written form


class Parser(argparse.ArgumentParser):
    """A parser that takes no shortened names, since they may mean another option later. An error is one line."""

    def __init__(self, **named: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **named)

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser`."""
        self.exit(2, f"{self.prog}: error: {message}; --help shows what there is\n")

    def parse_args(  # type: ignore[override]  # argparse declares overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """See `argparse.ArgumentParser`; the error of an unknown option says which one may be meant."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command: Parser = getattr(given, "parser", self)
            wrong = [one for one in unknown if one.startswith("-")] or unknown
            likely = suggest(wrong[0].split("=")[0], command._option_string_actions)
            command.error(f"unrecognized arguments: {' '.join(wrong)}{likely}")
        return given

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            likely = suggest(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{likely}") from None


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """--model."""
    about = "model folder (default: $GPT2_EDGE_MODEL, else the only one under ./models, else the installed demo)"
    parser.add_argument("--model", metavar="FOLDER", help=about)


def add_models_argument(parser: argparse.ArgumentParser) -> None:
    """--model, several times."""
    about = (
        "model folder; several times for several models (default: $GPT2_EDGE_MODEL, else the only one under ./models)"
    )
    parser.add_argument("--model", action="append", metavar="FOLDER", help=about)


def add_loading_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """--model, --threads, --verify, --cache. `several`: --model may be repeated, and is a list."""
    add = parser.add_argument
    if several:
        add_models_argument(parser)
    else:
        add_model_argument(parser)
    add("--threads", type=int, metavar="N", help="threads of one pass (default: every core)")
    about = "check every byte of the model, or sizes, or nothing (default: every byte once, then sizes and times)"
    add("--verify", choices=["full", "size", "off"], help=about)
    about = "type of keys and values: int8 is smaller and quicker (default: int8 where the build has it, else fp32)"
    add("--cache", choices=["fp32", "int8"], help=about)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of loading, --json, --verbose."""
    add_loading_arguments(parser)
    add = parser.add_argument
    add("--json", action="store_true", help="print the result as JSON when it is complete")
    add("--verbose", action="store_true", help="report the speed at the end, on standard error")


def add_folders_argument(parser: argparse.ArgumentParser) -> None:
    """FOLDER, several times, for commands that take several models."""
    parser.add_argument("folder", nargs="*", metavar="FOLDER", help="the same as --model FOLDER")


def add_folder_argument(parser: argparse.ArgumentParser) -> None:
    """FOLDER, for commands that take no other text."""
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="the same as --model FOLDER")


def add_draft_argument(parser: argparse.ArgumentParser) -> None:
    """--draft."""
    about = (
        "a smaller model of the same vocabulary that proposes tokens (speculative decoding): fewer passes; "
        "at int8 and int4 some texts differ"
    )
    parser.add_argument("--draft", metavar="FOLDER", help=about)


def add_prefix_argument(parser: argparse.ArgumentParser) -> None:
    """--prefix."""
    about = "what the text begins with, computed before by gpt2-edge prefix: the same result, sooner"
    parser.add_argument("--prefix", metavar="FILE", help=about)


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of generation: `max_new_tokens` is --max-new-tokens. Those not given keep their defaults."""
    group = parser.add_argument_group("options of generation")
    for name, option in OPTIONS.items():
        if name not in NOT_ON_THE_COMMAND_LINE:
            about = in_words_of_command_line(option.about)
            add_argument(group, name, option.kind, option.default, about, destination=f"option_{name}")


def collect_options(given: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by name."""
    named = vars(given)
    return {
        name: option.kind.collect(named[f"option_{name}"])
        for name, option in OPTIONS.items()
        if f"option_{name}" in named
    }


def read_usage(given: argparse.Namespace) -> None:
    """Check what can be checked before a model is opened, and add `options`. Raises TypeError or ValueError."""
    _join_folders(given)
    for name in ("threads", "n", "best_of", "num_beams", "batch_size", "stride", "limit"):
        if getattr(given, name, None) is not None:
            check_count(name, getattr(given, name))
    if getattr(given, "logprobs", 0) and not given.json:
        raise ValueError("--logprobs goes with --json")
    options = collect_options(given)
    if given.asks and given.prompt is None and is_at_terminal() and "temperature" not in options:
        options = SAMPLING | options
    given.options = options
    if given.checks_options:
        checked = make_options(options)
        if getattr(given, "num_beams", 1) == 1:
            check_seed(checked)


def _join_folders(given: argparse.Namespace) -> None:
    """Take FOLDER as --model. Raises ValueError where both are given."""
    folder = getattr(given, "folder", None)
    if not folder:
        return
    if given.model is not None:
        both = [" ".join(value) if isinstance(value, list) else value for value in (folder, given.model)]
        raise ValueError(f"the model is given twice: {both[0]} and --model {both[1]}")
    given.model = folder
