"""A task: how a text becomes a prompt, and how the answer is read from what follows."""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from types import MappingProxyType
from typing import Any, Literal

from runtime._suggestion import suggest
from runtime.options import Options, make_options
from runtime.scoring.last_word import STOP_WORDS
from runtime.tasks.answers import whole_text

Kind = Literal["generate", "choose", "last_word"]
_KIND_FIELDS: dict[str, dict[str, Any]] = {
    "generate": {},
    "choose": {"options": None, "scoring": "full"},
    "last_word": {"stop_words": STOP_WORDS},
}
_OPTIONS = tuple(field.name for field in dataclasses.fields(Options))
_TAKEN = {"text", "task", "model", "abstain_below", "prefix", *_OPTIONS}


@dataclasses.dataclass(frozen=True)
class By:
    """A default that depends on another field's value."""

    field: str
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What makes a prompt of a text, and an answer of what follows: the condition in P(output | input, task).

    name: what it is called.
    template: the prompt, with `{text}` for the input and `{field}` for each other field; `{{` and `}}` are braces.
    about: what it does and whose protocol it is.
    zero_shot: the template where the field `examples` is empty; "" is the same one.
    fields: the other fields and their defaults; None has to be given.
    pairs: fields that hold pairs of texts, and how each pair is written: two `{}`.
    decoding: options of `runtime.generate` that differ from its defaults, the stop rule among them.
    reads: the answer in what the model wrote; see `runtime.tasks.answers`.
    kind: "generate" writes the answer; "choose" takes the likeliest of `options`, which stand at `_` in the prompt or
        follow it; "last_word" predicts a text's last word.
    has_confidence: whether the probability of what was written says anything.
    Raises TypeError or ValueError for a template that names no `{text}` or an unknown field, and for wrong options.
    """

    name: str
    template: str
    about: str = ""
    zero_shot: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pairs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reads: Callable[[str], str] = whole_text
    kind: Kind = "generate"
    has_confidence: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _KIND_FIELDS:
            raise ValueError(f"kind is {self.kind!r}; {', '.join(_KIND_FIELDS)}")
        fields = {**_KIND_FIELDS[self.kind], **self.fields}
        for name, value in (("fields", fields), ("pairs", self.pairs), ("decoding", self.decoding)):
            object.__setattr__(self, name, MappingProxyType(dict(value)))
        self._check()

    def _check(self) -> None:
        taken = _TAKEN.intersection(self.fields)
        if taken:
            raise ValueError(f"task {self.name!r}: a field cannot be called {min(taken)!r}, which means something else")
        for template in filter(None, (self.template, self.zero_shot)):
            unknown = _names(template) - {"text", *self.fields}
            if unknown or "text" not in _names(template):
                raise ValueError(
                    f"task {self.name!r}: the template {template!r} has {sorted(unknown)}; "
                    f"it takes {{text}} and the fields {sorted(self.fields)}"
                )
        if self.zero_shot and "examples" not in self.fields:
            raise ValueError(f"task {self.name!r}: zero_shot is for where the field examples is empty; there is none")
        for name, value in self.fields.items():
            if isinstance(value, By) and value.field not in self.fields:
                raise ValueError(f"task {self.name!r}: {name} depends on {value.field!r}, which is no field")
        if any(name not in self.fields or pair.count("{}") != 2 for name, pair in self.pairs.items()):
            raise ValueError(f"task {self.name!r}: pairs is {dict(self.pairs)}; a field and a text with two {{}}")
        if self.kind == "generate":
            make_options(self.decoding)
        elif set(self.decoding) - {"overflow"}:
            raise ValueError(f"task {self.name!r}: a task that writes nothing takes the option overflow only")

    @property
    def option_names(self) -> tuple[str, ...]:
        """The options of generation it takes."""
        return _OPTIONS if self.kind == "generate" else ("overflow",)

    def prompt(self, text: str, **given: Any) -> str:
        """What the model reads. Raises TypeError or ValueError for unknown, missing and wrong fields."""
        values = self.values(given)
        bare = bool(self.zero_shot) and not values["examples"]
        template = self.zero_shot if bare else self.template
        written = {name: self._write(name, values[name]) for name in _names(template) - {"text"}}
        return template.format(text=text, **written)

    def beginning(self, **given: Any) -> str:
        """What every prompt with these fields begins with, for `runtime.prefix`: all that stands before the text.

        "" where nothing does, as in `read`: there the prompt begins with the text itself.
        """
        both = zip(self.prompt("0", **given), self.prompt("1", **given), strict=True)
        return "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every field's value: what is given, else its default."""
        unknown = [name for name in given if name not in self.fields]
        if unknown:
            likely = suggest(unknown[0], [*self.fields, *self.option_names])
            raise TypeError(
                f"{unknown[0]!r} is no field of {self.name}{likely}, which has {self._described()}; "
                f"nor one of the options {', '.join(self.option_names)}"
            )
        values = {name: given.get(name, default) for name, default in self.fields.items()}
        for name, value in values.items():
            if value is None:
                raise ValueError(f"{self.name} needs {name}=...; its fields are {self._described()}")
            if isinstance(value, By):
                values[name] = self._choose_default(name, value, values[value.field])
        return values

    def _choose_default(self, name: str, default: By, by: object) -> object:
        if not isinstance(by, str):
            raise TypeError(f"{default.field} is {by!r}; a text is expected")
        if by not in default.values:
            raise ValueError(
                f"{default.field} is {by!r}, for which {self.name} has no {name} of its own; it has them for "
                f"{', '.join(default.values)}. Give {name}=[...], or {name}=() for none"
            )
        return default.values[by]

    def _write(self, name: str, value: object) -> str:
        if name not in self.pairs:
            if not isinstance(value, str):
                raise TypeError(f"{name} is {value!r}; a text is expected")
            return value
        return "".join(self.pairs[name].format(*pair) for pair in _check_pairs(name, value))

    def _described(self) -> str:
        return ", ".join(
            f"{name} (needed)" if value is None else f"{name} (default {_short(value)})"
            for name, value in self.fields.items()
        ) or "none"  # fmt: skip

    def __str__(self) -> str:
        lines = {
            "prompt": repr(self.template),
            "without examples": repr(self.zero_shot) if self.zero_shot else "",
            **{f"a pair of {name}": repr(pair) for name, pair in self.pairs.items()},
            "fields": self._described(),
            "decoding": ", ".join(f"{name}={value!r}" for name, value in self.decoding.items()) or "greedy",
            "answer": getattr(self.reads, "__name__", "read by a function of its own").replace("_", " "),
        }
        if self.kind != "generate":
            lines["decoding"], lines["answer"] = "", "the likeliest " + ("option" if self.kind == "choose" else "word")
        head = f"{self.name}: {self.about}" if self.about else self.name
        return "\n".join([head, *(f"  {name}: {value}" for name, value in lines.items() if value)])


def _names(template: str) -> set[str]:
    """The fields in a template. Raises ValueError for what is no plain name."""
    names = set()
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise ValueError(f"{{{name}}} in the template {template!r} is no plain name; a brace is written twice")
        names.add(name)
    return names


def _check_pairs(name: str, value: object) -> Sequence[tuple[str, str]]:
    pairs: list[Any] = [*value] if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"{name} is {value!r}; pairs of texts are expected, such as [('one', 'other')]")
    return pairs


def _short(value: object) -> str:
    if isinstance(value, By):
        return f"by {value.field}: {', '.join(value.values)}"
    if isinstance(value, Sized) and not isinstance(value, str) and len(value) > 2:
        return f"{len(value)} of them"
    return repr(value)
