"""How a task comes to its answer: the model writes it, chooses one of several options, or predicts the last word."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from runtime._checks import check_texts
from runtime.errors import ContextLengthError
from runtime.generation.completion import Completion
from runtime.generation.context_window import tokenize
from runtime.generation.loop import stream_pieces
from runtime.generation.row import Place, Row
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.options import Options, check_seed, make_options
from runtime.prefixes.prefix import Prefix
from runtime.scoring.context import SharedContext
from runtime.scoring.last_word import MAX_WORD_TOKENS, STOP_WORDS, predict_word
from runtime.scoring.multiple_choice import check_options, option_pairs, share, split_blank
from runtime.scoring.scoring import Pair, score_pairs
from runtime.tokenization.encode import check_fits, encode_prompt

if TYPE_CHECKING:
    from runtime.tasks.task import Task

OPTION_NAMES = tuple(field.name for field in dataclasses.fields(Options))
_FILTERS = ("top_k", "top_p", "min_p", "typical_p")


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of a task.

    text: "" where the confidence is under `abstain_below`.
    confidence: the probability of the answer under the model's own distribution, before temperature, penalties and
        filters:
        - a written answer (`answer`, `read`, `translate`): the probability of everything that was written, the product
          over its tokens, including those of a stop string that ended it; 0 for an empty answer. Section 3.8 of the
          GPT-2 paper finds it well calibrated.
        - `choose`: the probability of the option, given that it is one of them.
        - `last_word`: the probability of the word, the product over its tokens.
        None where it says nothing: `summarize`, which samples.
    completion: of a written answer.
    probabilities: of each option, for `choose`.
    n_truncated: tokens left out by overflow "truncate_left" or "slide".
    """

    text: str
    confidence: float | None
    completion: Completion | None = None
    probabilities: Mapping[str, float] = dataclasses.field(default_factory=dict)
    n_truncated: int = 0


class Call(NamedTuple):
    """One use of a task: its text, the values of its fields, and the options of generation that were given."""

    model: Model
    task: Task
    text: str
    fields: Mapping[str, Any]
    options: Mapping[str, Any]
    prefix: Prefix | None = None


class Method(Protocol):
    """How a task comes to its answer.

    fields: the fields that every such task has, with their defaults; None has to be given.
    option_names: the options of generation that it takes.
    answer: what the answer is, for people; "" where the task says how it is read.
    """

    fields: ClassVar[Mapping[str, Any]]
    option_names: ClassVar[tuple[str, ...]]
    answer: ClassVar[str]

    def perform(self, call: Call) -> Answer:
        """The answer. Raises TypeError or ValueError as `runtime.perform` does."""


class Write:
    """The model continues the prompt, and the task reads the answer in what it wrote."""

    fields: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    option_names: ClassVar[tuple[str, ...]] = OPTION_NAMES
    answer: ClassVar[str] = ""

    def perform(self, call: Call) -> Answer:
        """See `Method.perform`."""
        model, task, text, fields, options, prefix = call
        writing = prepare(model, task, text, fields, options)
        check_seed(writing.options)
        row = Row(model, writing.ids, writing.options, Place(), n_top=0, prefix=prefix)
        for _ in stream_pieces(model, [row]):
            pass
        return read_answer(task, row.completion(), writing.n_truncated)


class Choose:
    """The likeliest of `options`, which stand at the blank `_` in the prompt or follow it."""

    fields: ClassVar[Mapping[str, Any]] = MappingProxyType({"options": None, "scoring": "full"})
    option_names: ClassVar[tuple[str, ...]] = ("overflow",)
    answer: ClassVar[str] = "the likeliest option"

    def perform(self, call: Call) -> Answer:
        """See `Method.perform`."""
        model, task, text, fields, _, prefix = call
        options = check_options(fields["options"])
        size = model.config.n_positions

        def pairs_of(text: str) -> list[Pair]:
            return option_pairs(model, task.prompt(text, **fields), options, fields["scoring"])

        def has_blank(text: str) -> bool:
            return split_blank(task.prompt(text, **fields))[1] is not None

        limit = Limit(size + 1, f"{size} positions and one token that is predicted only; the longest option is counted")
        fitted, n_truncated = _fit(call, lambda text: max(pair.length for pair in pairs_of(text)), limit)
        if has_blank(text) and not has_blank(fitted):
            raise ValueError(f"what follows the blank _ is too long by itself: at most {limit.n_tokens} tokens fit")
        probabilities = share(score_pairs(model, pairs_of(fitted), prefix))
        best = max(range(len(options)), key=probabilities.__getitem__)
        by_option = dict(zip(options, probabilities, strict=True))
        return Answer(options[best], probabilities[best], probabilities=by_option, n_truncated=n_truncated)


class PredictWord:
    """The likeliest word that may follow the prompt and is not one of `stop_words`."""

    fields: ClassVar[Mapping[str, Any]] = MappingProxyType({"stop_words": STOP_WORDS})
    option_names: ClassVar[tuple[str, ...]] = ("overflow",)
    answer: ClassVar[str] = "the likeliest word"

    def perform(self, call: Call) -> Answer:
        """See `Method.perform`."""
        model, task, _, fields, _, prefix = call
        stop_words = frozenset(check_texts("stop_words", fields["stop_words"], least=0))
        size = model.config.n_positions

        def ids_of(text: str) -> list[int]:
            return encode_prompt(model, task.prompt(text, **fields).rstrip())

        limit = Limit(size - MAX_WORD_TOKENS, f"{size} positions less {MAX_WORD_TOKENS} for the word")
        fitted, n_truncated = _fit(call, lambda text: len(ids_of(text)), limit)
        shared = SharedContext(model, ids_of(fitted), MAX_WORD_TOKENS, n_uses=2, prefix=prefix)
        word, probability = predict_word(model, shared, stop_words)
        return Answer(word, probability, n_truncated=n_truncated)


METHODS: Mapping[str, Method] = MappingProxyType({"generate": Write(), "choose": Choose(), "last_word": PredictWord()})


class Writing(NamedTuple):
    """The prompt of a task that writes. n_truncated: tokens of the text that were left out."""

    prompt: str
    ids: list[int]
    options: Options
    n_truncated: int


def prepare(model: Model, task: Task, text: str, fields: Mapping[str, Any], given: Mapping[str, Any]) -> Writing:
    """The prompt of a task that writes. Raises TypeError or ValueError as `runtime.perform` does."""
    options = _decoding(task, given)

    def ids_of(text: str) -> list[int]:
        return tokenize(model, task.prompt(text, **fields), options)

    n_new = options.max_new_tokens
    size = model.config.n_positions
    n_truncated = 0
    # With the other values of overflow, generation itself makes the prompt fit.
    if options.overflow in ("error", "truncate_left"):
        limit = Limit(size - n_new, f"{size} positions less max_new_tokens {n_new}")
        text, n_truncated = _fit_text(model, text, lambda text: len(ids_of(text)), limit, options.overflow)
    return Writing(task.prompt(text, **fields), ids_of(text), options, n_truncated)


def read_answer(task: Task, completion: Completion, n_truncated: int = 0, abstain_below: float | None = None) -> Answer:
    """The answer in a completion whose log-probabilities were recorded."""
    completion = dataclasses.replace(completion, n_truncated=completion.n_truncated + n_truncated)
    answer = task.reads(completion.text)
    confidence = None
    if task.has_confidence:
        confidence = math.exp(completion.logprob) if answer else 0.0
    return abstain(Answer(answer, confidence, completion, n_truncated=completion.n_truncated), abstain_below)


def abstain(answer: Answer, least: float | None) -> Answer:
    """The answer, without its text where the confidence is under `least`."""
    if least is not None and answer.confidence is not None and answer.confidence < least:
        return dataclasses.replace(answer, text="")
    return answer


def _decoding(task: Task, given: Mapping[str, Any]) -> Options:
    """The options given, and the task's for the rest. With temperature 0, the task's filters of sampling are left out.

    Filters choose what to sample from, and greedy decoding does not sample.
    """
    defaults = dict(task.decoding)
    if given.get("temperature") == 0:
        defaults = {name: value for name, value in defaults.items() if name not in _FILTERS}
    return make_options({**defaults, **given})


class Limit(NamedTuple):
    """How many tokens a prompt may have, and why."""

    n_tokens: int
    why: str


def _fit(call: Call, length: Callable[[str], int], limit: Limit) -> tuple[str, int]:
    """`_fit_text` for a task that writes nothing."""
    overflow: str = {"overflow": "error", **call.task.decoding, **call.options}["overflow"]
    if overflow not in ("error", "truncate_left"):
        raise ValueError(f"overflow is {overflow!r}; for {call.task.name}, error or truncate_left")
    return _fit_text(call.model, call.text, length, limit, overflow)


def _fit_text(model: Model, text: str, length: Callable[[str], int], limit: Limit, overflow: str) -> tuple[str, int]:
    """The text, with its beginning left out where that is needed and allowed, and how many tokens the prompt lost.

    length: tokens of the prompt with a text; the rest of the prompt stays whole.
    Raises ValueError with the numbers and the cure.
    """
    if overflow == "error":
        check_fits(model, text, limit.n_tokens)
    n_whole = length(text)
    n = n_whole
    size = model.config.n_positions
    told = f"the prompt is {n_whole} tokens and {limit.n_tokens} fit: {limit.why}"
    while n > limit.n_tokens:
        if overflow == "error":
            told += ". Shorten the text, or overflow='truncate_left' leaves out its beginning"
            raise ContextLengthError(told, n_whole, max(0, size - limit.n_tokens), size)
        ends = [end for _, end in calls.encode(model.tokenizer, text, whole=False).offsets]
        n_over = n - limit.n_tokens
        if n_over >= len(ends):
            told += ". It is too long without any of the text; shorten the rest"
            raise ContextLengthError(told, n_whole, max(0, size - limit.n_tokens), size)
        text = text[max(1, ends[n_over - 1]) :].lstrip()
        n = length(text)
    return text, n_whole - n
