"""Structured output: the options that ask for it, checked without the engine that keeps it.

The engine is `runtime.generation.constrained`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from runtime.options import Options


class Form(NamedTuple):
    """What every continuation is: one of several texts, a match of a regular expression, or JSON of a schema."""

    option: str  # its name
    value: str | tuple[str, ...]


def find_form(options: Options) -> Form | None:
    """The form that is asked for. Raises ValueError for two, and for an option that would break one, naming both."""
    given = [Form(name, getattr(options, name)) for name in READERS if getattr(options, name) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise ValueError(f"{' and '.join(form.option for form in given)} are given; a result has one form, so give one")
    refused = {
        "stop": (options.stops, "would cut the form short"),
        "min_new_tokens": (options.min_new_tokens, "may forbid the end that the form has; ask for the length there"),
        "no_repeat_ngram_size": (options.no_repeat_ngram_size, "may forbid what the form needs"),
        "token_healing": (options.token_healing, "begins inside the prompt, and the form after it"),
    }  # fmt: skip
    for name, (is_given, why) in refused.items():
        if is_given:
            raise ValueError(f"{name} does not go with {given[0].option}: it {why}; leave one of them out")
    return given[0]


def read_choices(value: Any) -> tuple[str, ...]:
    """Several texts. Raises TypeError or ValueError for anything else."""
    choices = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (None,)
    if not all(isinstance(choice, str) for choice in choices):
        raise TypeError(f"choices is {value!r}; a list of strings is expected")
    if not choices:
        raise ValueError("choices is empty; at least one text is needed")
    return tuple(_check_unicode("choices", choice) for choice in choices)


def read_regex(value: Any) -> str:
    """A regular expression, as it is. Raises TypeError or ValueError for what can be none."""
    if not isinstance(value, str):
        raise TypeError(f"regex is {value!r}; a string is expected, a compiled one's is in its attribute `pattern`")
    if (len(value) - len(value.rstrip("\\"))) % 2:  # the engine would leave it out
        raise ValueError(f"regex {value!r} ends in a backslash that escapes nothing")
    return _check_unicode("regex", value)


def read_schema(value: Any) -> str:
    """A JSON schema, a mapping or its JSON, as JSON. Raises TypeError or ValueError for what is no object."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"json_schema is no JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise TypeError(f"json_schema is {value!r}; a JSON object, as a dict or a string, is expected")
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"json_schema is no JSON: {error}") from None


READERS: dict[str, Callable[[Any], Any]] = {"choices": read_choices, "regex": read_regex, "json_schema": read_schema}


def _check_unicode(name: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has a lone surrogate in {text!r}, at {error.start}: it is not valid Unicode"
        ) from None
    return text
