"""Tasks in plain words: P(output | input, task).

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: the task, like its input, is text. The
built-in ones are in `runtime.tasks.library`; one of your own:

    rhyme = Task("rhyme", "A rhyme about {text}:", decoding={"max_new_tokens": 40, "temperature": 0.8})
    print(runtime.perform(rhyme, "the sea").text)
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from runtime._checks import check_texts
from runtime._suggestion import suggest
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
from runtime.scoring.last_word import MAX_WORD_TOKENS, predict_word
from runtime.scoring.multiple_choice import check_options, option_pairs, share, split_blank
from runtime.scoring.scoring import Pair, score_pairs
from runtime.tasks.library import TASKS
from runtime.tasks.task import By, Task
from runtime.tokenization.encode import check_fits, check_text, encode_prompt

__all__ = ["TASKS", "Answer", "By", "Task", "find_task", "perform"]
_FILTERS = ("top_k", "top_p", "min_p", "typical_p")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a task.

    confidence: what the model's own distribution, before temperature, penalties and filters, gives the answer:
        - a written one (`answer`, `read`, `translate`): the probability of all that was written, the product over
          its tokens, those of a stop string that ended it included; 0 for an empty one. Section 3.8 of the paper
          finds it well calibrated.
        - `choose`: the probability of the option, given that it is one of them.
        - `last_word`: the probability of the word, the product over its tokens.
        None where it says nothing: `summarize`, which samples.
    """

    text: str  # "" where the confidence is under `abstain_below`
    confidence: float | None
    completion: Completion | None = None  # of a written answer
    probabilities: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of each option, for `choose`
    n_truncated: int = 0  # tokens left out by overflow "truncate_left" or "slide"


def perform(
    model: Model,
    task: str | Task,
    text: str,
    given: Mapping[str, Any],
    abstain_below: float | None = None,
    prefix: Prefix | None = None,
) -> Answer:
    """See `runtime.perform`; `given` holds fields and options."""
    task = find_task(task)
    check_text(text)
    if not text.strip():
        raise ValueError(f"the text is empty; {task.name} needs one")
    check_abstention(task, abstain_below)
    fields = task.values({name: value for name, value in given.items() if name not in task.option_names})
    options = {name: value for name, value in given.items() if name in task.option_names}
    if prefix is not None:
        prefix.check(task.prompt(text.strip(), **fields))
    answer = _KINDS[task.kind](model, task, text.strip(), fields, options, prefix)
    return abstain(answer, abstain_below)


def abstain(answer: Answer, least: float | None) -> Answer:
    """No text where the confidence is under `least`."""
    if least is not None and answer.confidence is not None and answer.confidence < least:
        return dataclasses.replace(answer, text="")
    return answer


def find_task(task: str | Task) -> Task:
    """A Task as it is, or the built-in one of this name. Raises TypeError or ValueError, naming all there are."""
    if isinstance(task, Task):
        return task
    if not isinstance(task, str):
        raise TypeError(f"task is {task!r}; a Task or a name is expected: {', '.join(TASKS)}")
    if task not in TASKS:
        likely = suggest(task, TASKS)
        raise ValueError(f"there is no task {task!r}{likely}; there are {', '.join(TASKS)}, and a Task of your own")
    return TASKS[task]


def check_abstention(task: Task, least: object) -> None:
    if least is None:
        return
    if isinstance(least, bool) or not isinstance(least, numbers.Real) or not 0 <= float(least) <= 1:
        raise ValueError(f"abstain_below is {least!r}; a probability from 0 to 1 is expected")
    if not task.has_confidence:
        raise ValueError(f"abstain_below is a confidence, and {task.name} has none")


def _write(
    model: Model, task: Task, text: str, fields: Mapping[str, Any], given: Mapping[str, Any], prefix: Prefix | None
) -> Answer:
    """Generate, and read the answer."""
    writing = prepare(model, task, text, fields, given)
    check_seed(writing.options)
    row = Row(model, writing.ids, writing.options, Place(), n_top=0, prefix=prefix)
    for _ in stream_pieces(model, [row]):
        pass
    return read_answer(task, row.completion(), writing.n_truncated)


class Writing(NamedTuple):
    """What a task that writes has continued."""

    prompt: str
    ids: list[int]
    options: Options
    n_truncated: int  # tokens of the text that were left out


def prepare(model: Model, task: Task, text: str, fields: Mapping[str, Any], given: Mapping[str, Any]) -> Writing:
    """The prompt of a task that writes. Raises TypeError or ValueError as `perform` does."""
    options = _decoding(task, given)

    def ids_of(text: str) -> list[int]:
        return tokenize(model, task.prompt(text, **fields), options)

    n_new, size = options.max_new_tokens, model.config.n_positions
    if options.overflow in ("error", "truncate_left"):  # else the row sees to it
        limit = Limit(size - n_new, f"{size} positions less max_new_tokens {n_new}")
        text, n_truncated = _fit(model, text, lambda text: len(ids_of(text)), limit, options.overflow)
    else:
        n_truncated = 0
    return Writing(task.prompt(text, **fields), ids_of(text), options, n_truncated)


def read_answer(task: Task, completion: Completion, n_truncated: int = 0, abstain_below: float | None = None) -> Answer:
    """The answer in what was written, whose log-probabilities are recorded."""
    completion = dataclasses.replace(completion, n_truncated=completion.n_truncated + n_truncated)
    answer = task.reads(completion.text)
    confidence = (math.exp(completion.logprob) if answer else 0.0) if task.has_confidence else None
    return abstain(Answer(answer, confidence, completion, n_truncated=completion.n_truncated), abstain_below)


def _decoding(task: Task, given: Mapping[str, Any]) -> Options:
    """The task's options and those given, which come first; greedy forgets what the task would sample from."""
    defaults = dict(task.decoding)
    if given.get("temperature") == 0:
        defaults = {name: value for name, value in defaults.items() if name not in _FILTERS}
    return make_options({**defaults, **given})


def _choose(
    model: Model, task: Task, text: str, fields: Mapping[str, Any], given: Mapping[str, Any], prefix: Prefix | None
) -> Answer:
    """Score every option."""
    options, size = check_options(fields["options"]), model.config.n_positions

    def pairs_of(text: str) -> list[Pair]:
        return option_pairs(model, task.prompt(text, **fields), options, fields["scoring"])

    limit = Limit(size + 1, f"{size} positions and one token that is predicted only; the longest option is counted")
    has_blank = split_blank(task.prompt(text, **fields))[1] is not None
    text, n_truncated = _fit(
        model, text, lambda text: max(pair.length for pair in pairs_of(text)), limit, _overflow(task, given)
    )
    if has_blank and split_blank(task.prompt(text, **fields))[1] is None:
        raise ValueError(f"what follows the blank _ is too long by itself: at most {limit.n_tokens} tokens fit")
    probabilities = share(score_pairs(model, pairs_of(text), prefix))
    best = max(range(len(options)), key=probabilities.__getitem__)
    by_option = dict(zip(options, probabilities, strict=True))
    return Answer(options[best], probabilities[best], probabilities=by_option, n_truncated=n_truncated)


def _predict(
    model: Model, task: Task, text: str, fields: Mapping[str, Any], given: Mapping[str, Any], prefix: Prefix | None
) -> Answer:
    """Predict the last word."""
    stop_words, size = fields["stop_words"], model.config.n_positions
    stop_words = check_texts("stop_words", stop_words, least=0)

    def ids_of(text: str) -> list[int]:
        return encode_prompt(model, task.prompt(text, **fields).rstrip())

    limit = Limit(size - MAX_WORD_TOKENS, f"{size} positions less {MAX_WORD_TOKENS} for the word")
    text, n_truncated = _fit(model, text, lambda text: len(ids_of(text)), limit, _overflow(task, given))
    shared = SharedContext(model, ids_of(text), MAX_WORD_TOKENS, n_uses=2, prefix=prefix)
    word, probability = predict_word(model, shared, frozenset(stop_words))
    return Answer(word, probability, n_truncated=n_truncated)


_KINDS: Mapping[str, Callable[..., Answer]] = {"generate": _write, "choose": _choose, "last_word": _predict}


def _overflow(task: Task, given: Mapping[str, Any]) -> str:
    overflow: str = {"overflow": "error", **task.decoding, **given}["overflow"]
    if overflow not in ("error", "truncate_left"):
        raise ValueError(f"overflow is {overflow!r}; for {task.name}, error or truncate_left")
    return overflow


class Limit(NamedTuple):
    """How long a prompt may be."""

    n_tokens: int
    why: str


def _fit(model: Model, text: str, length: Callable[[str], int], limit: Limit, overflow: str) -> tuple[str, int]:
    """The text without its beginning, where that is needed and allowed, and how many tokens the prompt lost.

    length: of the prompt with this text, whose other parts stay whole. Raises ValueError with numbers and cure.
    """
    if overflow == "error":
        check_fits(model, text, limit.n_tokens)
    n = n_whole = length(text)
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
