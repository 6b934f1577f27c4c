"""The public functions: thin, over the modules below."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from runtime import generation, scoring
from runtime.completion import Completion
from runtime.default_model import check_path, find, resolve
from runtime.model import Model
from runtime.options import Options, OptionsDict, UnseededDict, check_count, make_options, make_seeded, takes_options
from runtime.row import Place, Row
from runtime.scoring import Score, ScoreOverflow
from runtime.text import encode_prompt

if TYPE_CHECKING:  # loaded where they are used: importing the package stays quick
    from runtime.perplexity import Progress
    from runtime.tasks import Answer, Task

ModelOrPath = Model | str | os.PathLike[str] | None
Several = list[str] | tuple[str, ...]


def load(path: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> Model:
    """Open a model folder: one that `export/build.py` made, or a plain optimum export of GPT-2 with past-key-values.

    path: the folder; None is the one in $GPT2_EDGE_MODEL, else the only built model under ./models.
    threads: for the products within a pass; None lets onnxruntime take every physical core.
    Raises FileNotFoundError, naming the folder or file that is missing; ValueError for one that is damaged or not
    GPT-2's, and for several built models to choose from.
    """
    return Model(Path(find() if path is None else check_path(path)), threads=threads)


@takes_options
def generate(
    prompt: str, *, model: ModelOrPath = None, task: str | Task | None = None, **options: Unpack[OptionsDict]
) -> str:
    """The continuation of a prompt: the text that follows it, without the prompt itself.

    prompt: any text; an empty one starts from the beginning of a text.
    model: a Model, the path of a model folder, or None: the folder in $GPT2_EDGE_MODEL, else the only built model
        under ./models. A path or None is loaded at its first use and kept.
    task: what to do with the prompt instead, such as "summarize": see `perform`, whose answer's text this returns.
    Raises TypeError or ValueError for a wrong option; ValueError when prompt and max_new_tokens pass the model's
    n_positions, unless `overflow` says otherwise; FileNotFoundError where no model is found.
    """
    if task is not None:
        return perform(task, prompt, model=model, **options).text
    return "".join(stream(prompt, model=model, **options))


@takes_options
def stream(prompt: str, *, model: ModelOrPath = None, **options: Unpack[OptionsDict]) -> Iterator[str]:
    """The continuation of a prompt, in pieces as they are decoded; no piece ends inside a character.

    Takes and raises what `generate` does, and the pieces join to what it returns. What is wrong with the options
    raises here, not at the first piece. Closing the iterator ends the work.
    """
    opened = resolve(model)
    rows = [_make_row(opened, prompt, make_options(options), Place())]
    return (piece for _, piece in generation.generate_pieces(opened, rows) if piece)


@takes_options
def stream_many(
    prompts: Sequence[str],
    *,
    model: ModelOrPath = None,
    batch_size: int = generation.BATCH_SIZE,
    **options: Unpack[OptionsDict],
) -> Iterator[tuple[int, str]]:
    """The continuations of several prompts, decoded together: (index of the prompt, piece of its continuation).

    Takes what `generate` does; each prompt's pieces join to what `generate` returns for it.
    batch_size: how many decode at a time; the others wait.
    """
    opened = resolve(model)
    checked = make_options(options)
    check_count("batch_size", batch_size)
    rows = [_make_row(opened, prompt, checked, Place(index)) for index, prompt in enumerate(_as_list(prompts))]
    pieces = generation.generate_pieces(opened, rows, batch_size)
    return ((row.place.prompt_index, piece) for row, piece in pieces if piece)


@takes_options
def complete(
    prompts: str | Sequence[str],
    *,
    model: ModelOrPath = None,
    n: int = 1,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    logprobs: int = 0,
    batch_size: int = generation.BATCH_SIZE,
    seed: int | Sequence[int] | None = None,
    **options: Unpack[UnseededDict],
) -> list[Completion]:
    """Continuations with all that is known of them, prompt by prompt: `n` for each, every one decoded as if alone.

    Takes what `generate` does, and:
    n: continuations for each prompt; more than one needs a temperature above 0, or beams.
    num_beams: above 1, the `n` best of so many beams, best first, by transformers' beam search. Prompts are searched
        one after the other; see `runtime.beam.search`.
    length_penalty: beams compare by log-probability / length ** length_penalty; above 0 favours long ones.
    early_stopping: True ends once num_beams are finished; False, when the running ones are no better at their
        present length; "never", when they cannot become better.
    logprobs: how many alternatives to record for each token.
    batch_size: how many rows decode at a time; the others wait. Beams are rows of their own, all at a time.
    seed: one for every prompt, or a sequence with one for each; the same seed writes the same `n` continuations.
    """
    opened, texts = resolve(model), _as_list(prompts)
    checked = make_seeded(options, seed, len(texts))
    for name, count in (("n", n), ("num_beams", num_beams), ("batch_size", batch_size)):
        check_count(name, count)
    check_count("logprobs", logprobs, least=0)
    if logprobs > opened.config.vocab_size:
        raise ValueError(f"logprobs is {logprobs}; the model has {opened.config.vocab_size} tokens")
    if num_beams > 1:
        from runtime import beam  # only where it is used: importing the package stays quick

        return beam.search(
            opened, texts, checked[0], beam.Beams(num_beams, n, length_penalty, early_stopping, logprobs)
        )
    if length_penalty != 1 or early_stopping is not False:
        raise ValueError("length_penalty and early_stopping are for beam search; set num_beams above 1")
    return _complete_rows(opened, texts, checked, n, logprobs, batch_size)


def _complete_rows(
    model: Model, prompts: Sequence[str], options: Sequence[Options], n: int, n_top: int, batch_size: int
) -> list[Completion]:
    if n > 1 and options[0].temperature == 0:
        raise ValueError(f"n is {n}, but at temperature 0 all samples are the same; set temperature or num_beams")
    rows = [
        _make_row(model, prompt, options[index], Place(index, sample), n_top)
        for index, prompt in enumerate(prompts)
        for sample in range(n)
    ]
    for _ in generation.generate_pieces(model, rows, batch_size):
        pass
    return [row.completion() for row in rows]


def _make_row(model: Model, prompt: str, options: Options, place: Place, n_top: int | None = None) -> Row:
    ids = encode_prompt(model, prompt, special_tokens=options.special_tokens)
    return Row(model, ids, options, place, n_top)


def _as_list(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("there are no prompts; give at least one")
    return texts


@overload
def score(
    continuation: str, *, context: str = "", model: ModelOrPath = None, overflow: ScoreOverflow = "error"
) -> Score: ...
@overload
def score(
    continuation: Several, *, context: str = "", model: ModelOrPath = None, overflow: ScoreOverflow = "error"
) -> list[Score]: ...
def score(
    continuation: str | Sequence[str],
    *,
    context: str = "",
    model: ModelOrPath = None,
    overflow: ScoreOverflow = "error",
) -> Score | list[Score]:
    """How likely the model finds a continuation of a context: a Score, or one for each of several continuations.

    Several share the pass over their context, with the very results each has alone. Ids are as
    lm-evaluation-harness's `loglikelihood` has them: white space at the end of the context goes to the continuation;
    an empty context is bos_token_id (`<|endoftext|>`); the continuation has the ids of both together after as many
    as the context alone has, so cut the two between words. `<|endoftext|>` written in a text is text.
    overflow: where context and continuation together pass n_positions + 1 tokens (the last is predicted only):
        "error", or "truncate_left", which leaves out the beginning of the context.
    Raises TypeError for what is no text; ValueError for an empty continuation, and for one too long.
    """
    scores = scoring.score(resolve(model), scoring.as_texts(continuation), context, overflow)
    return scores[0] if isinstance(continuation, str) else scores


@overload
def score_text(text: str, *, model: ModelOrPath = None, stride: int | None = None) -> Score: ...
@overload
def score_text(text: Several, *, model: ModelOrPath = None, stride: int | None = None) -> list[Score]: ...
def score_text(
    text: str | Sequence[str], *, model: ModelOrPath = None, stride: int | None = None
) -> Score | list[Score]:
    """Log-probability of every token of a text but the first, and their perplexity; one Score for each of several.

    Windows of n_positions tokens begin every `stride` tokens (default n_positions: fastest; smaller gives each
    token more context). No token is prepended; every other token is predicted once.
    Raises ValueError for a text of fewer than two tokens or a stride outside 1 .. n_positions.
    """
    opened = resolve(model)
    scores = [scoring.score_text(opened, one, stride) for one in scoring.as_texts(text)]
    return scores[0] if isinstance(text, str) else scores


def perform(
    task: str | Task, text: str, *, model: ModelOrPath = None, abstain_below: float | None = None, **fields: Any
) -> Answer:
    """Do what a task says with a text: P(output | input, task), the GPT-2 paper's zero-shot tasks (2019, section 3).

    task: summarize, translate, answer, read, choose, last_word, or a `runtime.tasks.Task` of your own. Printed, a
        task shows its prompt, its fields and its defaults: `print(runtime.tasks.TASKS["translate"])`.
    text: the article, sentence, question, passage ...; white space around it is left out.
    fields: the task's own (a task with `examples` is strictly zero-shot without them, `examples=()`: the instruction
        in plain words and the text), and any option of `generate`, in place of the task's.
        overflow="truncate_left" cuts the beginning of the text, and keeps the rest of the prompt.
    abstain_below: an answer whose confidence is under this probability comes back with the text "".
    Returns an Answer: text, confidence (see `runtime.tasks.Answer` for which probability it is), completion.
    Raises TypeError or ValueError for an unknown task, field or option, naming what there is; for a missing or wrong
    one; for an empty text; and for a prompt that is too long, with the numbers.
    """
    from runtime import tasks

    return tasks.perform(resolve(model), task, text, fields, abstain_below)


def evaluate(
    task: str,
    path: str | os.PathLike[str],
    *,
    model: ModelOrPath = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What the GPT-2 paper and lm-evaluation-harness report of a model, measured on a file: a dict fit for JSON.

    task and path:
        "lambada": JSON lines with `text`; the last word is predicted.
        "choose": JSON lines with `context`, `options` and `answer` (an option, or its index); see `perform`.
        "perplexity": a text file as it is. "wikitext": one of WikiText's files, whose lines, articles and
        punctuation are treated as for the published numbers.
    limit: only the first so many lines of the file.
    progress: called with how much is done and how much there is.
    Raises FileNotFoundError; ValueError for an unknown task and for a file that holds something else, naming the line.
    """
    from runtime import evaluation

    return evaluation.evaluate(resolve(model), task, path, limit, progress)
