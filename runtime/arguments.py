"""Options as command-line arguments: made from `Options`, so that names, defaults and meanings are said once."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from runtime.options import OVERFLOWS, Options, check_count, make_options

NOT_ON_THE_COMMAND_LINE = ("cancel",)  # Ctrl-C


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --threads, --json, --verbose."""
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="model folder (default: $GPT2_EDGE_MODEL, else the only one under ./models)")
    add("--threads", type=int, metavar="N", help="threads of one pass (default: every core)")
    add("--json", action="store_true", help="print the result as JSON when it is complete")
    add("--verbose", action="store_true", help="close with the speed, on standard error")


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
    if "Sequence" in kind:
        of: type = int if "int" in kind else str
        return {"action": "append", "type": of, "metavar": of.__name__.upper(), "help": f"{about}; may be repeated"}
    of = int if kind.startswith("int") else float
    default = "" if field.default is None else f" (default: {field.default})"
    return {"type": of, "metavar": "N" if of is int else "X", "help": f"{about}{default}"}


def _bias(text: str) -> tuple[int, float]:
    id_, _, value = text.partition("=")
    return int(id_), float(value)


def read_usage(given: argparse.Namespace) -> None:
    """Check what can be checked before a model is opened, and add `options`. Raises TypeError or ValueError."""
    for name in ("threads", "n", "num_beams", "batch_size", "stride", "limit"):
        if getattr(given, name, None) is not None:
            check_count(name, getattr(given, name))
    options = {name.removeprefix("option_"): v for name, v in vars(given).items() if name.startswith("option_")}
    if "logit_bias" in options:
        options["logit_bias"] = dict(options["logit_bias"])
    given.options = options
    if given.checks_options:
        make_options(options)
