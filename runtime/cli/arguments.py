"""Options as command-line arguments: made from `Options`, so that names, defaults and meanings are said once."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from runtime._suggestion import suggest
from runtime.cli.interactive import SAMPLING, is_at_terminal
from runtime.options import OVERFLOWS, Options, check_count, check_seed, make_options

NOT_ON_THE_COMMAND_LINE = ("cancel",)  # Ctrl-C
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


class Parser(argparse.ArgumentParser):
    """Names are written out: a shortened one may mean another command's option. Wrong usage is told in one line."""

    def __init__(self, **named: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **named)

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser`."""
        self.exit(2, f"{self.prog}: error: {message}; --help shows what there is\n")

    def parse_args(  # type: ignore[override]  # argparse declares overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """See `argparse.ArgumentParser`; an unknown option is named with the one that it may have meant."""
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
    about = "model folder (default: $GPT2_EDGE_MODEL, else the only one under ./models)"
    parser.add_argument("--model", metavar="FOLDER", help=about)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --threads, --verify."""
    add = parser.add_argument
    add_model_argument(parser)
    add("--threads", type=int, metavar="N", help="threads of one pass (default: every core)")
    about = "check every byte of the model, or sizes, or nothing (default: every byte once, then sizes and times)"
    add("--verify", choices=["full", "size", "off"], help=about)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of loading, --json, --verbose."""
    add_loading_arguments(parser)
    add = parser.add_argument
    add("--json", action="store_true", help="print the result as JSON when it is complete")
    add("--verbose", action="store_true", help="close with the speed, on standard error")


def add_folder_argument(parser: argparse.ArgumentParser) -> None:
    """FOLDER, for commands that take no other text."""
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="the same as --model FOLDER")


def add_draft_argument(parser: argparse.ArgumentParser) -> None:
    """--draft."""
    about = "a smaller model of the same vocabulary that runs ahead: fewer passes; the text is the same at fp32 only"
    parser.add_argument("--draft", metavar="FOLDER", help=about)


def add_prefix_argument(parser: argparse.ArgumentParser) -> None:
    """--prefix."""
    about = "of a text that begins as the one this file was made of (gpt2-edge prefix): the same result, sooner"
    parser.add_argument("--prefix", metavar="FILE", help=about)


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of generation: `max_new_tokens` is --max-new-tokens. Those not given keep their defaults."""
    group = parser.add_argument_group("options of generation")
    for field in dataclasses.fields(Options):
        if field.name not in NOT_ON_THE_COMMAND_LINE:
            group.add_argument(
                f"--{field.name.replace('_', '-')}",
                dest=f"option_{field.name}",
                default=argparse.SUPPRESS,
                **_how(field),
            )


def _how(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """What `add_argument` needs to know of an option."""
    kind, about = str(field.type), field.metadata["about"].replace("%", "%%")
    if kind == "bool":
        return {"action": "store_true", "help": about}
    if field.name == "overflow":
        return {"choices": OVERFLOWS, "help": f"{about} (default: {field.default})"}
    if field.name == "logit_bias":
        return {"action": "append", "type": _bias, "metavar": "ID=NUMBER", "help": f"{about}; may be repeated"}
    if field.name == "stop":
        about += r"; \n is a line end, \t a tab, \\ a backslash; may be repeated"
        return {"action": "append", "type": _unescape, "metavar": "TEXT", "help": about}
    if "Sequence" in kind:
        of: type = int if "int" in kind else str
        return {"action": "append", "type": of, "metavar": of.__name__.upper(), "help": f"{about}; may be repeated"}
    if field.name == "json_schema":
        return {"type": _schema, "metavar": "FILE", "help": f"{about}; a file, or the schema itself"}
    if kind.startswith("str"):
        return {"metavar": "TEXT", "help": about}
    of = int if kind.startswith("int") else float
    default = "" if field.default is None else f" (default: {field.default})"
    return {"type": of, "metavar": "N" if of is int else "X", "help": f"{about}{default}"}


def _unescape(text: str) -> str:
    r"""A shell passes \n on as two characters; any other character after a backslash leaves both as they are."""
    return re.sub(r"\\([nrt\\])", lambda match: _ESCAPES[match[1]], text)


def _bias(text: str) -> tuple[int, float]:
    id_, _, value = text.partition("=")
    try:
        return int(id_), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no ID=NUMBER, such as 50256=-inf") from None


def _schema(text: str) -> str:
    """The schema itself, which begins with a brace, or that of a file."""
    if text.lstrip().startswith("{"):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a JSON schema nor a file with one: {error}") from None


def read_usage(given: argparse.Namespace) -> None:
    """Check what can be checked before a model is opened, and add `options`. Raises TypeError or ValueError."""
    if getattr(given, "folder", None) is not None:
        if given.model is not None:
            raise ValueError(f"the model is given twice: {given.folder} and --model {given.model}")
        given.model = given.folder
    for name in ("threads", "n", "num_beams", "batch_size", "stride", "limit"):
        if getattr(given, name, None) is not None:
            check_count(name, getattr(given, name))
    if getattr(given, "logprobs", 0) and not given.json:
        raise ValueError("--logprobs goes with --json")
    options = {name.removeprefix("option_"): v for name, v in vars(given).items() if name.startswith("option_")}
    if "logit_bias" in options:
        options["logit_bias"] = dict(options["logit_bias"])
    if given.asks and given.prompt is None and is_at_terminal() and "temperature" not in options:
        options = SAMPLING | options
    given.options = options
    if given.checks_options:
        checked = make_options(options)
        if getattr(given, "num_beams", 1) == 1:
            check_seed(checked)
