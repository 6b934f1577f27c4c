"""Jinja templates of strangers, within limits of time and memory.

jinja2's sandbox keeps a template from Python's internals, and lets it compute for ever: `{{ 10 ** (10 ** 9) }}` does at
compile time already. Here every operation that makes something is told to a meter before it is done, where its size can
be known before, or just after:

- operators, calls and filters go through the environment, which jinja2 provides for;
- loops, `~`, slices, and literals of lists and mappings do after the syntax tree is rewritten;
- only filters, and methods of texts and containers, that are known to be bounded exist.

It is Python alone, without signals, processes or hooks of the interpreter, so it works in any thread and on any system.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 2**18  # characters
# Of all texts and entries of lists that one rendering makes, also those that it throws away. A prompt has far fewer.
MAX_MADE = 2**22
MAX_SECONDS = 5.0
# Python multiplies numbers of so many bits at once.
_MAX_BITS = 2**13
_MAX_DEPTH = 50
# The longest that a number is written without a width, and more.
_NUMBER = 1_000
_MAX_INDENT = 100
_MAX_PRECISION = 20
_LONG_NUMBER = re.compile(r"\d{4,}")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")
_FILTERS_OF_TEXTS = {"capitalize", "e", "escape", "lower", "safe", "title", "trim", "truncate", "upper", "wordcount"}
_FILTERS_OF_LISTS = {"count", "dictsort", "first", "groupby", "items", "last", "length", "list", "map", "max", "min"}
_FILTERS_OF_CHOICE = {"reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique"}
_FILTERS_OF_VALUES = {"abs", "d", "default", "float", "int"}
_PLAIN_FILTERS = _FILTERS_OF_TEXTS | _FILTERS_OF_LISTS | _FILTERS_OF_CHOICE | _FILTERS_OF_VALUES
_METHODS_THAT_FIND = {"count", "endswith", "find", "index", "rfind", "rindex", "startswith"}
_METHODS_THAT_TEST = {
    "isalnum",
    "isalpha",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
}
_METHODS_THAT_SPLIT = {"partition", "rpartition", "rsplit", "split", "splitlines"}
_METHODS_THAT_CUT = {"lstrip", "removeprefix", "removesuffix", "rstrip", "strip"}
_METHODS_THAT_CHANGE = {"capitalize", "casefold", "lower", "swapcase", "title", "upper"}
# These are checked one by one.
_METHODS_THAT_GROW = {"format", "format_map", "join", "replace"}
_TEXT_METHODS = (
    _METHODS_THAT_FIND
    | _METHODS_THAT_TEST
    | _METHODS_THAT_SPLIT
    | _METHODS_THAT_CUT
    | _METHODS_THAT_CHANGE
    | _METHODS_THAT_GROW
)
# By the kind of the object whose method it is.
_METHODS: tuple[tuple[type, set[str]], ...] = (
    (str, _TEXT_METHODS),
    (dict, {"get", "items", "keys", "values"}),
    (list, {"count", "index"}),
    (tuple, {"count", "index"}),
    (int, {"bit_length"}),
    (float, {"is_integer"}),
    # Whatever else Python has built in.
    (bytes, set()),
    (range, set()),
)
# Whose parts their text has, besides mappings.
_COLLECTIONS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
T = TypeVar("T")


class LimitError(TemplateError):
    """A template that takes more time or memory than it may, or asks for what it may not have."""


class Meter:
    """What one rendering has taken."""

    def __init__(self) -> None:
        self._n_made = 0
        self._end = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        """Before each call, filter and round of a loop. Raises LimitError once the time is over."""
        if time.monotonic() > self._end:
            raise LimitError(f"it takes more than {MAX_SECONDS:g} seconds")

    def make(self, n: int) -> None:
        """Before, or just after, `n` characters or entries are made. Raises LimitError for too many in all."""
        self.step()
        self._n_made += n
        if self._n_made > MAX_MADE:
            raise LimitError(f"it makes more than {MAX_MADE:,} characters")


_meter: ContextVar[Meter] = ContextVar("meter")


def metered(work: Callable[[], T]) -> T:
    """What `work` returns, which compiles or renders a template. Raises LimitError where it takes too much."""
    token = _meter.set(Meter())
    try:
        return work()
    finally:
        _meter.reset(token)


def size_of(value: object, *, as_text: bool = False) -> int:
    """Entries and characters in a value, a shared part as often as it appears: about the length of its text.

    Raises LimitError for more than MAX_MADE, and for parts that are nested too deeply; as_text: also for a namespace,
    whose parts are not counted.
    """
    total = 0
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        total += 1
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, int):
            total += one.bit_length() // 3
        elif isinstance(one, Mapping):
            left += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, _COLLECTIONS):
            left += [(part, depth + 1) for part in one]
        elif as_text and isinstance(one, Namespace):
            raise LimitError("it writes a namespace")
        if total + len(left) > MAX_MADE:
            raise LimitError(f"it makes more than {MAX_MADE:,} characters")
        if depth > _MAX_DEPTH:
            raise LimitError(f"it nests lists more than {_MAX_DEPTH} deep")
    return total


# operators ------------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """`str`, of a value that is not too large."""
    if isinstance(value, str):
        return value
    _meter.get().make(size_of(value, as_text=True))
    return str(value)


def _concatenate(pieces: Iterable[str]) -> str:
    """`"".join`, which jinja2 calls for the output and for the results of macros."""
    meter = _meter.get()
    kept = []
    for piece in pieces:
        meter.make(len(piece))
        kept.append(piece)
    return "".join(kept)


def _add(left: Any, right: Any) -> Any:
    for one in (left, right):
        if isinstance(one, str | list | tuple):
            size_of([left, right])
            _meter.get().make(len(one))
    return left + right


def _multiply(left: Any, right: Any) -> Any:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int):
            _meter.get().make(size_of(value) * max(times, 0))
            return value * times
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))
    return left**right


def _remainder(left: Any, right: Any) -> Any:
    if not isinstance(left, str):
        return left % right
    if _LONG_NUMBER.search(left) or "*" in left:
        raise LimitError(f"it formats by {left[:_MAX_INDENT]!r}")
    _meter.get().make(len(left) + left.count("%") * (size_of(right, as_text=True) + _NUMBER))
    return left % right


def _check_bits(n: int) -> None:
    if n > _MAX_BITS:
        raise LimitError(f"it computes a number of more than {_MAX_BITS} bits")


# filters and functions ------------------------------------------------------------------------------------------------


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    n = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    _meter.get().make(len(text) + n * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _replace_filter(value: object, old: object, new: object, count: int | None = None) -> str:
    return _replace(_text(value), _text(old), _text(new), count)


@pass_context
def _join(context: Context, value: Iterable[Any], separator: object = "", attribute: Any = None) -> str:
    items = list(value)
    if attribute is not None:
        items = list(context.environment.call_filter("map", items, kwargs={"attribute": attribute}, context=context))
    texts = [_text(item) for item in items]
    between = _text(separator)
    _meter.get().make(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def _indent(value: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if (len(width) if isinstance(width, str) else width) > _MAX_INDENT:
        raise LimitError(f"it indents by more than {_MAX_INDENT}")
    text = _text(value)
    _meter.get().make(len(text) + (text.count("\n") + 1) * _MAX_INDENT)
    indented: str = FILTERS["indent"](text, width, first, blank)
    return indented


def _round(value: float, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > _MAX_PRECISION:
        raise LimitError(f"it rounds to more than {_MAX_PRECISION} digits")
    return FILTERS["round"](value, precision, method)


def _format(value: object, *arguments: Any, **named: Any) -> Any:
    if arguments and named:
        raise LimitError("it formats by position and by name at once")
    return _remainder(_text(value), named or arguments)


@pass_context
def _sum(context: Context, value: Iterable[Any], attribute: Any = None, start: float = 0) -> Any:
    # The sum of lists is a list that grows with each.
    if not isinstance(start, int | float):
        raise LimitError("it adds up what are no numbers")
    items = value
    if attribute is not None:
        items = context.environment.call_filter("map", value, kwargs={"attribute": attribute}, context=context)
    return sum(items, start)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter: jinja2's own escapes HTML."""
    if indent is not None and indent > _MAX_INDENT:
        raise LimitError(f"it indents by more than {_MAX_INDENT}")
    size_of(value)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _concatenate(encoder.iterencode(value))


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_INDENT or re.search(r"\d{3,}", form):
        raise LimitError(f"it writes the time as {form[:_MAX_INDENT]!r}")
    return datetime.datetime.now().strftime(form)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _make_dict(*pairs: Any, **named: Any) -> dict[Any, Any]:
    made = dict(*pairs, **named)
    _meter.get().make(len(made))
    size_of(made)
    return made


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """The values, each a step."""
    meter = _meter.get()
    for value in values:
        meter.step()
        yield value


def _listed(values: Iterable[Any]) -> list[Any]:
    """A list of the values, which is not too large, counted as it grows."""
    meter = _meter.get()
    kept = []
    total = 0
    for value in values:
        total += size_of(value)
        if total > MAX_MADE:
            raise LimitError(f"it makes more than {MAX_MADE:,} characters")
        meter.make(1)
        kept.append(value)
    return kept


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is told to the meter, and that sees lists in the place of generators."""
    at = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        _meter.get().step()
        given = list(arguments)
        if isinstance(given[at], Iterator):
            given[at] = _listed(given[at])
        return _measured(function(*given, **named))

    return call


def _measured(result: Any) -> Any:
    """The result of a call or a filter, told to the meter."""
    if isinstance(result, str):
        _meter.get().make(len(result))
    elif isinstance(result, list | tuple | dict):
        _meter.get().make(len(result))
        size_of(result)
    elif isinstance(result, Iterator):
        return _counted(result)
    return result


def _make_filters() -> dict[str, Callable[..., Any]]:
    own: dict[str, Callable[..., Any]] = {
        "format": _format,
        "indent": _indent,
        "join": _join,
        "replace": _replace_filter,
        "round": _round,
        "string": _text,
        "sum": _sum,
        "tojson": _to_json,
    }
    plain = {name: FILTERS[name] for name in _PLAIN_FILTERS}
    return {name: _limited(function) for name, function in (plain | own).items()}


# the environment ------------------------------------------------------------------------------------------------------


@pass_context
def _count_rounds(_: Context, values: Iterable[Any]) -> Iterator[Any]:
    return _counted(values)


@pass_context
def _measure_literal(_: Context, value: Any) -> Any:
    return _measured(value)


@pass_context
def _join_texts(_: Context, values: Sequence[object]) -> str:
    return _concatenate([_text(value) for value in values])


# Names that no template can write. With a context they are not computed while a template is compiled.
_ROUNDS, _LITERAL, _TEXTS = "limits.rounds", "limits.literal", "limits.texts"
_INTERNAL = {_ROUNDS: _count_rounds, _LITERAL: _measure_literal, _TEXTS: _join_texts}


class _Rewriter(NodeTransformer):
    """Leads what jinja2 computes by itself to the meter."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  jinja2's own name
        if node.recursive:
            raise LimitError("it has a recursive loop")
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _ROUNDS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.Tuple(node.nodes, "load", lineno=node.lineno), _TEXTS)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _filtered(node, _LITERAL)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        is_plain = node.ctx != "load" or all(isinstance(item, nodes.Const) for item in node.items)
        return node if is_plain else _filtered(node, _LITERAL)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _LITERAL)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        is_slice = node.ctx == "load" and isinstance(node.arg, nodes.Slice)
        return _filtered(node, _LITERAL) if is_slice else node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """`{% generation %}` around what the model wrote: training masks by it, and a prompt has it as it is."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own name and type

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope of its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders templates as transformers does, within limits. For use inside `metered`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    concat = staticmethod(_concatenate)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_text,
        )
        self.filters = _make_filters() | _INTERNAL
        self.binop_table |= {"+": _add, "*": _multiply, "**": _power, "%": _remainder}
        self.globals.pop("lipsum")
        self.globals["dict"] = _make_dict
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise LimitError(f"it has more than {MAX_SOURCE:,} characters")
        tree: nodes.Template = _Rewriter().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, told to the meter."""
        _meter.get().step()
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int):
            _check_bits(result.bit_length())
        return result

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """A call, told to the meter. Raises LimitError for methods that may be unbounded."""
        _meter.get().step()
        owner = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        for kind, allowed in _METHODS:
            if isinstance(owner, kind) and name not in allowed:
                raise LimitError(f"it calls {name!r} of a {kind.__name__}")
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *arguments, **named)
        if isinstance(owner, str) and name == "join":
            arguments = (_listed(*arguments),)
            _meter.get().make(size_of(arguments[0]) + len(owner) * len(arguments[0]))
        return _measured(super().call(context, function, *arguments, **named))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, within limits."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form: str = value.__self__

        def bounded(*arguments: Any, **named: Any) -> str:
            fields = form.replace("{{", "").replace("}}", "")
            if _LONG_NUMBER.search(fields) or _NESTED_FIELD.search(fields):
                raise LimitError(f"it formats by {form[:_MAX_INDENT]!r}")
            largest = size_of([arguments, named], as_text=True) + _NUMBER
            _meter.get().make(len(form) + fields.count("{") * largest)
            return wrapped(*arguments, **named)

        return bounded
