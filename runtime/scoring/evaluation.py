"""The figures that are usually reported of a GPT-2, measured on files of examples and texts."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from runtime._checks import check_count
from runtime._math import perplexity
from runtime._suggestion import suggest
from runtime.model.model import Model
from runtime.scoring.context import SharedContext
from runtime.scoring.last_word import MAX_WORD_TOKENS, STOP_WORDS, find_word, predict_word
from runtime.scoring.multiple_choice import Scoring, check_options, option_pairs, split_blank
from runtime.scoring.perplexity import Progress, measure_rolling, measure_strided
from runtime.scoring.scoring import Pair, encode_pair, fit_pair, score_after, score_pairs
from runtime.scoring.wikitext import detokenize, join_lines, split_pages

Report = dict[str, Any]
# Examples whose options are scored together.
EXAMPLES_TOGETHER = 32
Example = TypeVar("Example")


def evaluate(
    model: Model,
    task: str,
    path: str | os.PathLike[str],
    limit: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """See `runtime.evaluate`."""
    if not isinstance(task, str) or task not in _EVALUATIONS:
        likely = suggest(str(task), _EVALUATIONS)
        raise ValueError(f"there is no evaluation {task!r}{likely}; there are {', '.join(_EVALUATIONS)}")
    if limit is not None:
        check_count("limit", limit)
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    report = _EVALUATIONS[task](model, file, limit, progress or (lambda _done, _all: None))
    return {"task": task, "file": file.name, "limit": limit, **report}


def _lambada(model: Model, path: Path, limit: int | None, progress: Progress) -> Report:
    """The last word of each text (Paperno et al., 2016): what follows its last space.

    accuracy, perplexity: as in lm-evaluation-harness's `lambada_openai`. A word counts where each of its tokens is
    the likeliest; the perplexity is of the whole word. accuracy_stop_words: the word that is predicted with the
    stop-word filter of the GPT-2 paper, section 3.3, is the text's. accuracy_last_token: of the last token alone,
    given all before it; others have found the paper's own accuracies close to this one.
    """
    texts = _read_examples(path, limit, lambda example: _check_text("text", example["text"]))
    logprob = 0.0
    hits = {"accuracy": 0, "accuracy_stop_words": 0, "accuracy_last_token": 0}
    n_truncated = 0
    for n_done, text in enumerate(texts, 1):
        context, _, word = text.rstrip().rpartition(" ")
        pair = encode_pair(model, context, f" {word}" if context else word)
        fitted = _leave_room(pair, model.config.n_positions)
        # The score and the prediction share the pass over the context.
        shared = SharedContext(model, fitted.context_ids, max(len(pair.ids), MAX_WORD_TOKENS), n_uses=2)
        score = score_after(shared, pair.ids)
        predicted, _ = predict_word(model, shared, STOP_WORDS, begins_text=not context)
        logprob += score.logprob
        n_truncated += fitted.n_truncated > 0
        hits["accuracy"] += score.is_greedy
        hits["accuracy_stop_words"] += predicted == find_word(word)
        hits["accuracy_last_token"] += score.greedy[-1]
        progress(n_done, len(texts))
    n = len(texts)
    return {
        "n": n,
        "n_truncated": n_truncated,
        **{name: count / n for name, count in hits.items()},
        "perplexity": perplexity(logprob, n),
    }


def _leave_room(pair: Pair, n_positions: int) -> Pair:
    """The pair, with its context cut at the left so that it, the ids and a predicted word fit."""
    n_over = len(pair.context_ids) + max(len(pair.ids), MAX_WORD_TOKENS) - n_positions
    return Pair(pair.context_ids[n_over:], pair.ids, n_over) if n_over > 0 else pair


def _choose(model: Model, path: Path, limit: int | None, progress: Progress) -> Report:
    """The likeliest option, by full and by partial scoring (Trinh & Le, "A Simple Method for Commonsense Reasoning").

    accuracy_partial: over the n_partial examples with text after the blank; None where there are none.
    """
    examples = _read_examples(path, limit, _Choice.parse)
    with_end = [example for example in examples if (split_blank(example.context)[1] or "").strip()]
    n_all = len(examples) + len(with_end)
    hits_full = _count_hits(model, examples, "full", lambda n_done: progress(n_done, n_all))
    hits_partial = _count_hits(model, with_end, "partial", lambda n_done: progress(len(examples) + n_done, n_all))
    return {
        "n": len(examples),
        "accuracy_full": hits_full / len(examples),
        "n_partial": len(with_end),
        "accuracy_partial": hits_partial / len(with_end) if with_end else None,
    }


class _Choice(NamedTuple):
    context: str
    options: list[str]
    answer: int

    @classmethod
    def parse(cls, example: dict[str, Any]) -> _Choice:
        context, options = _check_text("context", example["context"]), check_options(example["options"])
        answer = example["answer"]
        if isinstance(answer, str) and answer in options:
            return cls(context, options, options.index(answer))
        if isinstance(answer, int) and 0 <= answer < len(options):
            return cls(context, options, answer)
        raise ValueError(f"answer {answer!r} is none of the options {options}, nor the index of one")


def _check_text(key: str, value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"{key} is {value!r}; a text is expected")


def _count_hits(model: Model, examples: Sequence[_Choice], scoring: Scoring, progress: Callable[[int], object]) -> int:
    """How many examples have their answer as the likeliest option. Options of several examples share passes."""
    n_hits = 0
    for begin in range(0, len(examples), EXAMPLES_TOGETHER):
        group = examples[begin : begin + EXAMPLES_TOGETHER]
        pairs = [option_pairs(model, example.context, example.options, scoring) for example in group]
        fitted = [fit_pair(pair, model.config.n_positions, "error") for of_one in pairs for pair in of_one]
        logprobs = iter([score.logprob for score in score_pairs(model, fitted)])
        for example in group:
            of_options = list(itertools.islice(logprobs, len(example.options)))
            n_hits += max(range(len(of_options)), key=of_options.__getitem__) == example.answer
        progress(begin + len(group))
    return n_hits


def _perplexity(model: Model, path: Path, limit: int | None, progress: Progress) -> Report:
    """Perplexity of the text as it is."""
    text = _read_lines(path, limit)
    return _measure(model, text, [text], lambda text: text, progress)


def _wikitext(model: Model, path: Path, limit: int | None, progress: Progress) -> Report:
    """Perplexity of WikiText: lines joined as in transformers' recipe, articles detokenized as in the harness."""
    text = _read_lines(path, limit)
    return _measure(model, join_lines(text), split_pages(text), detokenize, progress)


def _measure(model: Model, text: str, pages: list[str], rewrite: Callable[[str], str], progress: Progress) -> Report:
    """`strided`: per token, with a stride of n_positions and of half of it; `rolling`: per token, word and byte."""
    size = model.config.n_positions
    strided = {str(stride): measure_strided(model, text, stride, progress) for stride in (size, size // 2)}
    rolling = measure_rolling(model, pages, rewrite, progress)
    names = (
        "n_tokens",
        "n_words",
        "n_bytes",
        "token_perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
    )
    return {"strided": strided, "rolling": {name: getattr(rolling, name) for name in names}}


_EVALUATIONS: Mapping[str, Callable[[Model, Path, int | None, Progress], Report]] = {
    "lambada": _lambada,
    "choose": _choose,
    "perplexity": _perplexity,
    "wikitext": _wikitext,
}


def _read_lines(path: Path, limit: int | None) -> str:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            return "".join(itertools.islice(file, limit))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}); an example a line is expected, each a JSON object") from None
    if not isinstance(value, dict):
        raise ValueError(f"{line.strip()[:80]} is no JSON object, as each line should be")
    return value


def _read_examples(path: Path, limit: int | None, parse: Callable[[dict[str, Any]], Example]) -> list[Example]:
    """What `parse` makes of each line, a JSON object. Raises ValueError naming the line."""
    examples = []
    for number, line in enumerate(_read_lines(path, limit).split("\n"), 1):
        if line.strip():
            try:
                examples.append(parse(_object(line)))
            except (TypeError, ValueError, KeyError) as error:
                what = f"{error} is missing" if isinstance(error, KeyError) else error
                raise ValueError(f"{path}, line {number}: {what}") from None
    if not examples:
        raise ValueError(f"{path} holds no examples")
    return examples
