"""Write the options of `runtime.options` where Python and the docs need them in full.

`python -m tests.support.signatures` rewrites the parameters and the docstrings of the functions of `runtime.api` that
take options, and the tables of docs/coming-from.md. Tests check that nothing is left to rewrite.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from pathlib import Path

from runtime.option_names import PARAMETERS, Parameter
from runtime.options import OPTIONS, Option, Options

REPOSITORY = Path(__file__).resolve().parents[2]
API = REPOSITORY / "runtime" / "api.py"
PAGE = REPOSITORY / "docs" / "coming-from.md"
FUNCTIONS = ("generate", "stream", "stream_many", "complete", "infill", "perform")
WIDTH = 120
ANY = "|".join(OPTIONS)
# Where a function takes an option in a form of its own: (type, meaning).
OWN = {
    ("complete", "seed"): (
        "int | Sequence[int] | None",
        "the seed of sampling: one for every prompt, or a sequence with one for each; the same seed gives the same `n` "
        "continuations; None draws one",
    )
}
# Where a function has a default of its own: greedy middles would all be the same.
OWN_DEFAULTS = {("infill", "temperature"): 1.0}
TYPES = {field.name: str(field.type) for field in dataclasses.fields(Options)}


def parameter(function: str, name: str) -> str:
    """One option in a signature."""
    annotation = OWN.get((function, name), (TYPES[name], ""))[0]
    if function == "perform":
        return f"    {name}: {or_task_default(annotation)} = TASK_DEFAULT,"
    return f"    {name}: {annotation} = {written(default_of(function, name))},"


def default_of(function: str, name: str) -> object:
    """The default of an option in a function."""
    return OWN_DEFAULTS.get((function, name), OPTIONS[name].default)


def written(value: object) -> str:
    """A default as the formatter writes it: texts in double quotes, unless they have some in them."""
    if isinstance(value, tuple) and value:
        return f"({', '.join(map(written, value))}{',' if len(value) == 1 else ''})"
    text = repr(value)
    return text if '"' in text else text.replace("'", '"')


def or_task_default(annotation: str) -> str:
    """The type of an option of `perform`; None stands last."""
    plain = annotation.removesuffix(" | None")
    return f"{plain} | TaskDefault{' | None' if plain != annotation else ''}"


def description(function: str, name: str) -> str:
    """One option in a docstring: its meaning, and its names in transformers and llama.cpp where they differ."""
    about = OWN.get((function, name), ("", OPTIONS[name].about))[1]
    text = f"{name}: {about}.{_names_elsewhere(name, OPTIONS[name])}"
    return "\n".join(textwrap.wrap(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 12))


def _names_elsewhere(name: str, option: Option) -> str:
    names = []
    if option.transformers not in (None, name):
        names.append(f"transformers: {option.transformers}")
    if option.llama_cpp not in (None, f"--{name.replace('_', '-')}"):
        names.append(f"llama.cpp: {option.llama_cpp}")
    return f" ({'; '.join(names)})" if names else ""


def rewrite_api(source: str) -> str:
    """The source of `runtime.api` with the options as `runtime.options` has them."""
    for function in FUNCTIONS:
        begin = source.index(f"\ndef {function}(")
        end = source.index('\n    """', source.index('    """', begin)) + 1
        part = source[begin:end]
        parameters = "".join(f"{parameter(function, name)}\n" for name in OPTIONS)
        part = _replace(part, rf"^    ({ANY}): .*?(?=^\) ->|^    \*\*)", parameters)
        descriptions = "".join(f"{description(function, name)}\n" for name in OPTIONS)
        part = _replace(part, rf"^        ({ANY}): .*?(?=^\n|^        \*\*)", descriptions)
        source = source[:begin] + part + source[end:]
    return source


def _replace(text: str, pattern: str, by: str) -> str:
    replaced, n = re.subn(pattern, lambda _: by, text, count=1, flags=re.MULTILINE | re.DOTALL)
    assert n == 1, f"{pattern} is not found"
    return replaced


def option_table() -> str:
    """The options and their names elsewhere, as a table in Markdown."""
    rows = [_row(name, option) for name, option in OPTIONS.items()]
    return "\n".join(["| here | transformers | llama.cpp | |", "|---|---|---|---|", *rows])


def parameter_table() -> str:
    """The other parameters and their names elsewhere, as a table in Markdown."""
    rows = [_row(one.name, one, f" of {', '.join(f'`{name}`' for name in one.functions)}") for one in PARAMETERS]
    return "\n".join(["| here | transformers | llama.cpp | |", "|---|---|---|---|", *rows])


def _row(name: str, one: Option | Parameter, where: str = "") -> str:
    cells = [f"`{name}`{where}", _code(one.transformers), _code(one.llama_cpp), one.note]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _code(name: str | None) -> str:
    return f"`{name}`" if name else "–"


def rewrite_page(page: str) -> str:
    """The page with both tables as they are."""
    for title, table in (("## Options", option_table()), ("## Other parameters", parameter_table())):
        at = page.index(title)
        page = page[:at] + _replace(page[at:], r"^\| here .*?\n(?=\n|\Z)", table + "\n")
    return page


def main() -> None:
    API.write_text(rewrite_api(API.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(rewrite_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
