"""Options as command-line arguments: made from `Options`, so that names, defaults and meanings are said once."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from runtime.options import OVERFLOWS, Options, check_count

NOT_ON_THE_COMMAND_LINE = ("cancel",)  # Ctrl-C


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --threads, --json, --verbose."""
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="model folder (default: $GPT2_EDGE_MODEL, else the only one under ./models)")
    add("--threads", type=int, metavar="N", help="threads of one pass (default: every core)")
    add("--json", action="store_true", help="print the result as JSON when it is complete")
    add("--verbose", action="store_true", help="close with the speed, on standard error")


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of generation: `max_new_tokens` is --max-new-tokens."""
    group = parser.add_argument_group("options")
    for field in dataclasses.fields(Options):
        if field.name not in NOT_ON_THE_COMMAND_LINE:
            _add_option(group, field)


def _add_option(group: argparse._ArgumentGroup, field: dataclasses.Field[Any]) -> None:
    flag, about, kind = f"--{field.name.replace('_', '-')}", field.metadata["about"], str(field.type)
    about = about.replace("%", "%%")
    if kind == "bool":
        group.add_argument(flag, action="store_true", help=about)
    elif field.name == "overflow":
        group.add_argument(flag, choices=OVERFLOWS, default=field.default, help=f"{about} (default: error)")
    elif field.name == "logit_bias":
        group.add_argument(flag, action="append", type=_bias, metavar="ID=NUMBER", help=f"{about}; may be repeated")
    elif "Sequence" in kind:
        of = int if "int" in kind else str
        group.add_argument(
            flag, action="append", type=of, default=[], metavar=of.__name__.upper(), help=f"{about}; may be repeated"
        )
    else:
        of_number = int if kind.startswith("int") else float
        default = "" if field.default is None else f" (default: {field.default})"
        metavar = "N" if of_number is int else "X"
        group.add_argument(flag, type=of_number, default=field.default, metavar=metavar, help=f"{about}{default}")


def _bias(text: str) -> tuple[int, float]:
    id_, _, value = text.partition("=")
    return int(id_), float(value)


def read_usage(given: argparse.Namespace) -> None:
    """Check what can be checked before a model is opened, and add `options`. Raises TypeError or ValueError."""
    for name in ("threads", "n", "num_beams", "batch_size"):
        if getattr(given, name, None) is not None:
            check_count(name, getattr(given, name))
    if hasattr(given, "temperature"):
        names = [field.name for field in dataclasses.fields(Options) if hasattr(given, field.name)]
        values: dict[str, Any] = {name: getattr(given, name) for name in names}
        values["logit_bias"] = dict(values["logit_bias"]) if values["logit_bias"] else None
        given.options = Options(**values)
