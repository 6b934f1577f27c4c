"""The options of generation: names, defaults, meanings and limits, each said once."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar, get_args

import numpy as np

from runtime._suggestion import suggest
from runtime.form import READERS, Form, find_form

MAX_SEED = 2**64 - 1
MAX_COUNT = 2**63 - 1  # of whole numbers that have no smaller limit
Overflow = Literal["error", "stop", "truncate_left", "slide"]
OVERFLOWS: tuple[str, ...] = get_args(Overflow)
# names that transformers and OpenAI have for an option
_ELSEWHERE = {
    "bad_words_ids": "suppress_ids",
    "do_sample": "temperature",
    "eos_token_id": "stop_ids",
    "max_completion_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "num_return_sequences": "n of runtime.complete",
    "stop_strings": "stop",
}
_OF_COMPLETE = ("batch_size", "early_stopping", "length_penalty", "logprobs", "n", "num_beams")
Function = TypeVar("Function", bound=Callable[..., Any])


def _option(default: Any, about: str, *, least: float | None = None, most: float | None = None) -> Any:
    """A field with its meaning, for documentation and the command line, and the range of its value."""
    return dataclasses.field(default=default, metadata={"about": about, "least": least, "most": most})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What may be asked of a generation. Raises TypeError or ValueError, naming option, value and what is allowed."""

    max_new_tokens: int = _option(64, "at most this many tokens", least=1)
    min_new_tokens: int = _option(0, "no end of text before this many tokens", least=0)
    temperature: float = _option(0.0, "0 is greedy; above 0 samples, 1 from the model's own distribution", least=0)
    top_k: int = _option(0, "sample from the k likeliest tokens; 0 is off", least=0)
    top_p: float = _option(1.0, "sample from the likeliest tokens that reach this probability; 1 is off", most=1)
    min_p: float = _option(0.0, "drop tokens below this share of the likeliest one's probability", least=0, most=1)
    typical_p: float = _option(1.0, "sample from the most typical tokens that reach this probability; 1 is off", most=1)
    repetition_penalty: float = _option(
        1.0, "divide the logits of the latest n_positions ids, prompt included; 1 is off"
    )
    presence_penalty: float = _option(0.0, "subtract from the logit of an id generated before", least=-math.inf)
    frequency_penalty: float = _option(0.0, "subtract for each time an id was generated before", least=-math.inf)
    no_repeat_ngram_size: int = _option(
        0, "never repeat so many ids in a row, of the latest n_positions; 0 is off", least=0
    )
    logit_bias: Mapping[int, float] | None = _option(None, "added to the logits of these ids")
    suppress_ids: Sequence[int] = _option((), "ids never generated")
    stop: str | Sequence[str] = _option((), "end before this text, or the first of several")
    stop_ids: Sequence[int] = _option((), "end at one of these ids, as at the end of text")
    choices: Sequence[str] | None = _option(None, "the continuation is one of these texts")
    regex: str | None = _option(None, "the continuation is a match of this regular expression, in Rust's syntax")
    json_schema: Mapping[str, Any] | str | None = _option(
        None, "the continuation is JSON of this schema, spaced as json.dumps does"
    )
    lookup: int = _option(
        0,
        "tokens proposed at a time, from what followed the same text before: fewer passes, "
        "the text is the same at fp32 only; 0 is off",
        least=0,
    )
    seed: int | None = _option(None, "of the sampling: same seed, same text; None draws one", least=0, most=MAX_SEED)
    overflow: Overflow = _option("error", "beyond the model's context: error, stop, truncate_left or slide")
    pinned_tokens: int = _option(0, "with overflow slide, this much of the prompt's beginning stays in view", least=0)
    special_tokens: bool = _option(False, "<|endoftext|> and its like in a prompt are tokens, not text")
    token_healing: bool = _option(False, "let the last token of the prompt grow: for prompts that end inside a word")
    deadline: float | None = _option(None, "seconds after which to end")
    cancel: Callable[[], bool] | None = _option(None, "asked before every pass; true ends")

    def __post_init__(self) -> None:
        """Numbers of other libraries, and collections that can be walked once, become plain ones."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(field, getattr(self, field.name)))
        self._check_conflicts()

    def _check_conflicts(self) -> None:
        filters = {"top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1}
        given = [f"{name}={getattr(self, name)}" for name, off in filters.items() if getattr(self, name) != off]
        if given and self.temperature == 0:
            raise ValueError(
                f"{', '.join(given)} chooses what to sample from, but temperature 0 does not sample; "
                "set temperature (1.0 is the model's own distribution) or leave it off"
            )
        if self.overflow not in OVERFLOWS:
            raise ValueError(f"overflow is {self.overflow!r}; it must be one of {', '.join(OVERFLOWS)}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        if self.pinned_tokens and self.overflow != "slide":
            raise ValueError(f"pinned_tokens goes with overflow='slide', not {self.overflow!r}")
        find_form(self)

    @property
    def form(self) -> Form | None:
        """What choices, regex or json_schema asks for."""
        return find_form(self)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return tuple(self.stop)  # made a tuple when it was checked


class UnseededDict(TypedDict, total=False):
    """`OptionsDict` without the seed, for a function that takes several."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    logit_bias: Mapping[int, float] | None
    suppress_ids: Sequence[int]
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    choices: Sequence[str] | None
    regex: str | None
    json_schema: Mapping[str, Any] | str | None
    lookup: int
    overflow: Overflow
    pinned_tokens: int
    special_tokens: bool
    token_healing: bool
    deadline: float | None
    cancel: Callable[[], bool] | None


class OptionsDict(UnseededDict, total=False):
    """`Options` for type checkers: what `**options` may hold."""

    seed: int | None


def takes_options(function: Function) -> Function:
    """Write every option out in the signature and the documentation of a function that takes `**options`."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = dataclasses.fields(Options)
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type) for f in fields]
    options = [option for option in options if option.name not in {p.name for p in own}]
    signature = inspect.signature(function).replace(parameters=[*own, *options])
    function.__signature__ = signature  # type: ignore[attr-defined]  # inspect and help() read it
    meanings = "\n".join(f"    {f.name}: {f.metadata['about']}." for f in fields)
    function.__doc__ = f"{function.__doc__ or ''}\n    Options:\n{meanings}\n"
    return function


def make_options(given: Mapping[str, Any]) -> Options:
    """Options from keywords. Raises TypeError naming an unknown one, what it may have meant, and all there are."""
    names = [field.name for field in dataclasses.fields(Options)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise TypeError(f"{unknown[0]!r} is not an option{_meant(unknown[0], names)}; there are {', '.join(names)}")
    return Options(**given)


def _meant(unknown: str, names: Sequence[str]) -> str:
    if unknown in _ELSEWHERE:
        return f" ({_ELSEWHERE[unknown]} is)"
    if unknown in _OF_COMPLETE:
        return f" here (runtime.complete takes {unknown})"
    return suggest(unknown, names)


def check_seed(options: Options) -> None:
    """Raise ValueError for a seed where nothing is drawn.

    Not part of `Options`: OpenAI's clients send a seed with every request, and the server takes it.
    """
    if options.seed is not None and options.temperature == 0:
        raise ValueError(
            f"seed={options.seed} is of sampling, but temperature 0 does not sample: the text is always the same; "
            "set temperature (1.0 is the model's own distribution) or leave seed out"
        )


def make_seeded(given: Mapping[str, Any], seed: object, n_prompts: int) -> list[Options]:
    """Options for each of several prompts: `seed` is one number for all of them, None, or a sequence of one for each.

    Raises TypeError or ValueError naming the entry that is no seed, and for a sequence of another length.
    """
    if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str | bytes):
        return [make_options({**given, "seed": seed})] * n_prompts
    if len(seed) != n_prompts:
        raise ValueError(f"seed has {len(seed)} entries for {n_prompts} prompts; give one for each, or a single number")
    seeds = [int(_number(f"seed[{index}]", one, True, 0, MAX_SEED)) for index, one in enumerate(seed)]
    options = make_options(given)
    return [dataclasses.replace(options, seed=one) for one in seeds]


def check_count(name: str, value: object, least: int = 1, most: int = MAX_COUNT) -> int:
    """The value as a plain int. Raises TypeError or ValueError unless it is a whole number from `least` to `most`."""
    return int(_number(name, value, True, least, most))


def _plain(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value as its field's type, checked."""
    name, kind, limits = field.name, str(field.type), (field.metadata["least"], field.metadata["most"])
    if value is None and field.default is None:
        return None
    if kind.startswith("int"):
        return check_count(name, value, limits[0], limits[1] or MAX_COUNT)
    if kind.startswith("float"):
        return float(_number(name, value, False, *limits))
    if kind == "bool" and not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; True or False is expected")
    plain: dict[str, Callable[[Any], Any]] = {"stop": _stops, "logit_bias": _bias, "cancel": _callback} | READERS
    if kind == "Sequence[int]":
        return _ids(name, value)
    return plain[name](value) if name in plain else value


def _number(name: str, value: Any, whole: bool, least: float | None, most: float | None) -> Any:
    """A number within its limits: a `least` of None means above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
        raise TypeError(f"{name} is {value!r}; {'a whole number' if whole else 'a number'} is expected")
    return _within(name, value, whole, least, most)


def _within(name: str, value: Any, whole: bool, least: float | None, most: float | None) -> Any:
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int beyond every float
        finite = whole
    too_small = value <= 0 if least is None else value < least
    if not finite or too_small or (most is not None and value > most):
        low = "above 0" if least is None else f"at least {least}" if math.isfinite(least) else "finite"
        if not finite and low != "finite":
            low = f"finite, {low}"
        high = "" if most is None or (most == MAX_COUNT and value <= most) else f" and at most {most}"
        raise ValueError(f"{name} is {_shown(value)}; it must be {low}{high}")
    return value


def _shown(value: object) -> str:
    """The value as text, which Python does not make of an int of thousands of digits."""
    try:
        return str(value)
    except ValueError:
        return "a number of thousands of digits"


def _stops(value: Any) -> tuple[str, ...]:
    stops = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError(f"stop is {value!r}; a string or several, none of them empty")
    return stops


def _ids(name: str, value: Any) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
    if any(isinstance(id_, bool) or not isinstance(id_, numbers.Integral) for id_ in ids):
        raise TypeError(f"{name} is {value!r}; several token ids are expected")
    return tuple(int(id_) for id_ in ids)


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias is {value!r}; a mapping from token ids to numbers is expected")
    try:
        for id_, number in value.items():
            if not isinstance(id_, numbers.Integral) or not isinstance(number, numbers.Real) or math.isnan(number):
                raise TypeError(f"logit_bias has {id_!r}: {number!r}; a token id and a number are expected")
        return {int(id_): float(number) for id_, number in value.items()}
    except OverflowError:
        raise ValueError("logit_bias has a number beyond every float; math.inf makes an id certain") from None


def _callback(value: Any) -> Callable[[], bool]:
    if not callable(value):
        raise TypeError(f"cancel is {value!r}; a function without arguments is expected")
    function: Callable[[], bool] = value
    return function
