"""What values an option may have: in Python, on the command line and in JSON.

Each kind is one class with three methods. `read` checks a value and makes it plain, `command_line` returns what
`argparse.add_argument` needs, and `json_form` says what the server takes. Options (`runtime.options`) and settings of
the server (`runtime.server_settings`) are declared with these kinds, so nothing has to interpret annotations.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from runtime._checks import (
    MAX_COUNT,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_one_or_several_texts,
    check_text,
    check_texts,
    check_unicode,
    shown,
)

# argparse is needed by the command line only, and takes time to import: functions here import it where they use it.
if TYPE_CHECKING:
    import argparse

    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


class JsonForm(NamedTuple):
    """What a value is in JSON: a type, as annotations write it, and limits by the names ge, gt and le."""

    type: Any
    limits: Mapping[str, float] = {}


class Kind(Generic[T]):
    """What values an option may have. T is the type that a type checker sees."""

    repeats = False  # whether the command line may give it several times
    note = ""  # for the help of the command line

    def read(self, name: str, value: Any) -> T:
        """The value as a plain one. Raises TypeError or ValueError, with `name`, the value and what is expected."""
        raise NotImplementedError

    def command_line(self) -> dict[str, Any]:
        """Keyword arguments for `argparse.ArgumentParser.add_argument`, without help and default."""
        raise NotImplementedError

    def json_form(self) -> JsonForm:
        """What the value is in JSON."""
        raise NotImplementedError

    def collect(self, given: Any) -> Any:
        """The value that argparse's result stands for."""
        return given


class Integer(Kind[int]):
    """A whole number from `least` to `most`."""

    def __init__(self, least: int, most: int = MAX_COUNT) -> None:
        self.least = least
        self.most = most

    def read(self, name: str, value: Any) -> int:
        """See `Kind.read`."""
        return check_count(name, value, self.least, self.most)

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"type": int, "metavar": "N"}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        return JsonForm(int, {"ge": self.least, "le": self.most})


class Number(Kind[float]):
    """A finite number: at least `least`, above `above`, at most `most`, where they are given."""

    def __init__(self, *, least: float | None = None, above: float | None = None, most: float | None = None) -> None:
        self.least = least
        self.above = above
        self.most = most

    def read(self, name: str, value: Any) -> float:
        """See `Kind.read`."""
        return check_number(name, value, least=self.least, above=self.above, most=self.most)

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"type": float, "metavar": "X"}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        limits = {"ge": self.least, "gt": self.above, "le": self.most}
        return JsonForm(float, {name: limit for name, limit in limits.items() if limit is not None})


class Flag(Kind[bool]):
    """True or False; on the command line False unless it is given."""

    def read(self, name: str, value: Any) -> bool:
        """See `Kind.read`."""
        return check_flag(name, value)

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"action": "store_true"}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        return JsonForm(bool)


class Choice(Kind[T]):
    """One of several names."""

    def __init__(self, names: Sequence[T]) -> None:
        self.names = tuple(names)

    def read(self, name: str, value: Any) -> T:
        """See `Kind.read`."""
        found: Any = check_choice(name, value, map(str, self.names))
        return found  # type: ignore[no-any-return]  # it is one of self.names

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"choices": self.names}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        return JsonForm(Literal[self.names])


class Text(Kind[str]):
    """One text."""

    def read(self, name: str, value: Any) -> str:
        """See `Kind.read`."""
        return check_text(name, value)

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"metavar": "TEXT"}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        return JsonForm(str)


class Regex(Text):
    """A regular expression in the syntax of Rust's `regex`."""

    def read(self, name: str, value: Any) -> str:
        """See `Kind.read`."""
        if not isinstance(value, str):
            cure = "a text is expected; a compiled pattern has its text in its attribute `pattern`"
            raise TypeError(f"{name} is {shown(value)}; {cure}")
        # The engine would ignore such a backslash.
        if (len(value) - len(value.rstrip("\\"))) % 2:
            raise ValueError(f"{name} is {shown(value)}, which ends in a backslash that escapes nothing")
        return check_unicode(name, value)


class Texts(Kind[Sequence[str]]):
    """Several texts, at least one."""

    repeats = True

    def read(self, name: str, value: Any) -> Sequence[str]:
        """See `Kind.read`."""
        return tuple(check_unicode(name, text) for text in check_texts(name, value))

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"action": "append", "metavar": "TEXT"}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        return JsonForm(list[str])


class Phrases(Kind[str | Sequence[str]]):
    r"""One text or several, none of them empty. The command line reads \n, \r, \t and \\ in them as escapes.

    `longest`: characters that each may have; None is any number. `without`: a character that none may have, and why.
    """

    repeats = True
    note = r"\n is a line end, \t a tab, \\ a backslash"

    def __init__(self, longest: int | None = None, without: tuple[str, str] | None = None) -> None:
        self.longest = longest
        self.without = without

    def read(self, name: str, value: Any) -> Sequence[str]:
        """See `Kind.read`; no texts at all are allowed, too."""
        if isinstance(value, Iterable) and not isinstance(value, str | bytes):
            value = tuple(value)
        texts = tuple(check_one_or_several_texts(name, value)) if value != () else ()
        if "" in texts:
            raise ValueError(f"{name} is {shown(value)}; texts that are not empty are expected")
        for text in texts:
            self._check(name, text)
        return texts

    def _check(self, name: str, text: str) -> None:
        check_unicode(name, text)
        if self.longest is not None and len(text) > self.longest:
            raise ValueError(f"{name} has a text of {len(text)} characters; at most {self.longest} are allowed")
        if self.without is not None and self.without[0] in text:
            raise ValueError(f"{name} has {shown(text)}, {self.without[1]}; leave it out")

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"action": "append", "type": unescape, "metavar": "TEXT"}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        return JsonForm(str | list[str])


class TokenIds(Kind[Sequence[int]]):
    """Several token ids."""

    repeats = True

    def read(self, name: str, value: Any) -> Sequence[int]:
        """See `Kind.read`."""
        ids = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
        if any(isinstance(id_, bool) or not isinstance(id_, numbers.Integral) for id_ in ids):
            raise TypeError(f"{name} is {shown(value)}; several token ids are expected")
        return tuple(int(id_) for id_ in ids)

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"action": "append", "type": int, "metavar": "ID"}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        return JsonForm(list[int])


class LogitBias(Kind[Mapping[int, float]]):
    """Numbers by token id. Infinite ones are allowed: an id is then certain, or never generated."""

    repeats = True

    def read(self, name: str, value: Any) -> Mapping[int, float]:
        """See `Kind.read`."""
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} is {shown(value)}; a mapping from token ids to numbers is expected")
        return {self._read_id(name, id_): self._read_number(name, id_, number) for id_, number in value.items()}

    def _read_id(self, name: str, id_: Any) -> int:
        if isinstance(id_, bool) or not isinstance(id_, numbers.Integral):
            raise TypeError(f"{name} has the key {shown(id_)}; a token id is expected")
        return int(id_)

    def _read_number(self, name: str, id_: Any, number: Any) -> float:
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise TypeError(f"{name} has {shown(number)} for token id {id_}; a number is expected")
        try:
            bias = float(number)
        except OverflowError:
            raise ValueError(f"{name} has a number beyond every float for token id {id_}; use math.inf") from None
        if math.isnan(bias):
            raise ValueError(f"{name} has nan for token id {id_}; a number is expected")
        return bias

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"action": "append", "type": _read_bias, "metavar": "ID=NUMBER"}

    def collect(self, given: Any) -> Any:
        """See `Kind.collect`."""
        return dict(given)

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`; JSON has text keys only."""
        return JsonForm(dict[str, float])


class JsonSchema(Kind[Mapping[str, Any] | str]):
    """A JSON schema, as a mapping or as JSON. `read` returns JSON."""

    note = "a file, or the schema itself"

    def read(self, name: str, value: Any) -> str:
        """See `Kind.read`."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name} is not JSON: {error}") from None
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} is {shown(value)}; a JSON object, as a dict or a text, is expected")
        try:
            return json.dumps(dict(value), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{name} cannot be written as JSON: {error}") from None

    def command_line(self) -> dict[str, Any]:
        """See `Kind.command_line`."""
        return {"type": _read_schema, "metavar": "FILE"}

    def json_form(self) -> JsonForm:
        """See `Kind.json_form`."""
        return JsonForm(dict[str, Any] | str)


class Function(Kind[T]):
    """A function that the caller has written. It has no form on a command line or in JSON."""

    expected = "a function"

    def read(self, name: str, value: Any) -> T:
        """See `Kind.read`."""
        if not callable(value):
            raise TypeError(f"{name} is {shown(value)}; {self.expected} is expected")
        function: Any = value
        return function  # type: ignore[no-any-return]  # its parameters cannot be checked


class Callback(Function[Callable[[], bool]]):
    """A function without arguments."""

    expected = "a function without arguments"


class LogitsFunction(Function[Callable[[Sequence[int], "NDArray[np.float32]"], "NDArray[np.float32]"]]):
    """A function from ids and logits to logits."""

    expected = "a function from token ids and logits to logits"


def add_argument(
    group: argparse._ArgumentGroup, name: str, kind: Kind[Any], default: object, about: str, destination: str
) -> None:
    """Add a value of some kind to a command line: its name as a flag, with its meaning and its default as help.

    Where it is not given, the result of argparse has no `destination`.
    """
    from argparse import SUPPRESS

    notes = [about.replace("%", "%%"), kind.note, "may be repeated" if kind.repeats else ""]
    told = "; ".join(note for note in notes if note)
    if isinstance(default, str | int | float) and default is not False:
        told += f" (default: {default})"
    flag = f"--{name.replace('_', '-')}"
    group.add_argument(flag, dest=destination, default=SUPPRESS, help=told, **kind.command_line())


def unescape(text: str) -> str:
    r"""Read \n, \r, \t and \\ as the characters they stand for; a shell passes them on as two characters each.

    A backslash before any other character stays.
    """
    return re.sub(r"\\([nrt\\])", lambda match: _ESCAPES[match[1]], text)


def _read_bias(text: str) -> tuple[int, float]:
    from argparse import ArgumentTypeError

    id_, _, number = text.partition("=")
    try:
        return int(id_), float(number)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not ID=NUMBER, such as 50256=-inf") from None


def _read_schema(text: str) -> str:
    """The schema itself, which begins with a brace, or the content of a file."""
    from argparse import ArgumentTypeError

    if text.lstrip().startswith("{"):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentTypeError(f"{text!r} is neither a JSON schema nor a file with one: {error}") from None
