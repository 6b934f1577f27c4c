"""Names that other tools have for what the public functions take: for errors, and for docs/coming-from.md.

The names of an option stand on the option itself, in `runtime.options`; those of other parameters stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from runtime._suggestion import suggest

if TYPE_CHECKING:
    from runtime.options import Option


class Parameter(NamedTuple):
    """A parameter of a public function that is no option, under its names elsewhere."""

    name: str
    functions: tuple[str, ...]  # which take it
    transformers: str | None = None
    llama_cpp: str | None = None
    others: tuple[str, ...] = ()
    note: str = ""


PARAMETERS = (
    Parameter("n", ("complete",), "num_return_sequences"),
    Parameter("num_beams", ("complete",), "num_beams"),
    Parameter("length_penalty", ("complete",), "length_penalty"),
    Parameter("early_stopping", ("complete",), "early_stopping"),
    Parameter(
        "logprobs",
        ("complete",),
        "output_logits",
        "n_probs",
        ("output_scores", "top_logprobs"),
        "output_logits of transformers has the logits of the whole vocabulary",
    ),
    Parameter("best_of", ("infill",), None, None, (), "of OpenAI's completions, too"),
    Parameter(
        "batch_size", ("complete", "stream_many", "infill"), "batch_size", "--parallel", (), "a parameter of pipelines"
    ),
    Parameter(
        "prefix",
        ("generate", "stream", "stream_many", "complete", "infill", "perform", "score"),
        "past_key_values",
        "cache_prompt",
        ("prompt_cache",),
        "cache_prompt is a field of a request to llama-server, and on by default there",
    ),
    Parameter(
        "draft",
        ("generate", "stream", "stream_many", "complete"),
        "assistant_model",
        "--model-draft",
        ("draft_model", "speculative_model"),
    ),
    Parameter("threads", ("load",), "torch.set_num_threads", "--threads", ("num_threads", "n_threads")),
)


def explain_unknown(name: str, options: Mapping[str, Option]) -> str:
    """What is wrong with a keyword that is none of the options: the one that was meant, and all there are."""
    return f"{name!r} is not an option{find_meant(name, options)}; the options are {', '.join(options)}"


def find_meant(unknown: str, options: Mapping[str, Option]) -> str:
    """What an unknown keyword may mean: ` (here it is NAME)`, or the option with the closest name, or ""."""
    for own, option in options.items():
        if unknown in _foreign_names(option):
            return f" (here it is {own})"
    for parameter in PARAMETERS:
        *others, last = (f"runtime.{function}" for function in parameter.functions)
        functions = f"{', '.join(others)} and {last}" if others else last
        if unknown == parameter.name:
            return f" here (it is a parameter of {functions})"
        if unknown in _foreign_names(parameter):
            return f" (here it is {parameter.name} of {functions})"
    return suggest(unknown, options)


def _foreign_names(one: Option | Parameter) -> set[str]:
    """Its names in other tools, written as a keyword is."""
    names = [one.transformers, one.llama_cpp, *one.others]
    return {name.lstrip("-").replace("-", "_") for name in names if name}
