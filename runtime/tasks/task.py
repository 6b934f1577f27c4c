"""A task as data: how a text becomes a prompt, and how its answer is found."""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from types import MappingProxyType
from typing import Any, Literal

from runtime._suggestion import suggest
from runtime.options import OPTIONS, make_options
from runtime.tasks.answers import whole_text
from runtime.tasks.methods import METHODS, OPTION_NAMES, Method

Kind = Literal["generate", "choose", "last_word"]
# Names that mean something else in `runtime.perform`.
_TAKEN = {"text", "task", "model", "abstain_below", "prefix", *OPTION_NAMES}


@dataclasses.dataclass(frozen=True)
class By:
    """A default that depends on another field's value."""

    field: str
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompt made from a text, and an answer made from what follows: the condition in P(output | input, task).

    name: the name of the task.
    template: the prompt, with `{text}` for the input and `{field}` for each other field; `{{` and `}}` are braces.
    about: what the task does, and whose protocol it is.
    zero_shot: the template where the field `examples` is empty; "" is the same template.
    fields: the other fields and their defaults; None has to be given.
    pairs: fields that hold pairs of texts, and how each pair is written: a text with two `{}`.
    decoding: options of `runtime.generate` that differ from its defaults, such as where to stop.
    reads: finds the answer in what the model wrote; see `runtime.tasks.answers`.
    kind: "generate" writes the answer; "choose" takes the likeliest of `options`, which stand at `_` in the prompt or
        follow it; "last_word" predicts a text's last word. See `runtime.tasks.methods`.
    has_confidence: whether the probability of what was written says anything.
    Raises TypeError or ValueError for a template that names no `{text}` or an unknown field, and for wrong options.

    >>> Task("rhyme", "A rhyme about {text}:").prompt("the sea")
    'A rhyme about the sea:'
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
        if self.kind not in METHODS:
            raise ValueError(f"kind is {self.kind!r}; {', '.join(METHODS)}")
        fields = {**self.method.fields, **self.fields}
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
        others = set(self.decoding) & set(OPTION_NAMES) - set(self.option_names)
        if others:
            taken_options = ", ".join(self.option_names)
            raise ValueError(f"task {self.name!r}: a task that writes nothing takes the option {taken_options} only")
        make_options(self.decoding)

    @property
    def method(self) -> Method:
        """How the answer is found."""
        return METHODS[self.kind]

    @property
    def option_names(self) -> tuple[str, ...]:
        """The options of generation that the task takes."""
        return self.method.option_names

    def prompt(self, text: str, **given: Any) -> str:
        """The prompt that the model reads. Raises TypeError or ValueError for unknown, missing and wrong fields."""
        values = self.values(given)
        bare = bool(self.zero_shot) and not values["examples"]
        template = self.zero_shot if bare else self.template
        written = {name: self._write(name, values[name]) for name in _names(template) - {"text"}}
        return template.format(text=text, **written)

    def beginning(self, **given: Any) -> str:
        """The beginning of every prompt with these fields, up to the text; for `runtime.prefix`.

        "" where the prompt begins with the text itself, as in `read`.
        """
        both = zip(self.prompt("0", **given), self.prompt("1", **given), strict=True)
        return "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The value of every field: the one given, or else the default."""
        unknown = [name for name in given if name not in self.fields]
        if unknown:
            likely = suggest(unknown[0], [*self.fields, *self.option_names])
            if not likely and self.kind == "generate":
                # Only where something is wrong: importing the package stays quick.
                from runtime.option_names import find_meant

                likely = find_meant(unknown[0], OPTIONS)
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

    def _described_decoding(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.decoding.items()) or "greedy"

    def __str__(self) -> str:
        lines = {
            "prompt": repr(self.template),
            "without examples": repr(self.zero_shot) if self.zero_shot else "",
            **{f"a pair of {name}": repr(pair) for name, pair in self.pairs.items()},
            "fields": self._described(),
            "decoding": "" if self.method.answer else self._described_decoding(),
            "answer": self.method.answer or getattr(self.reads, "__name__", "read by a function of its own"),
        }
        lines["answer"] = lines["answer"].replace("_", " ")
        head = f"{self.name}: {self.about}" if self.about else self.name
        return "\n".join([head, *(f"  {name}: {value}" for name, value in lines.items() if value)])


def _names(template: str) -> set[str]:
    """The names of the fields in a template. Raises ValueError for a field that is no plain name."""
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
