"""The public functions: thin, over the modules below."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from runtime._lock import importing
from runtime.generation import loop as generation
from runtime.generation.completion import Completion
from runtime.generation.draft import open_draft
from runtime.model.integrity import Verify
from runtime.model.model import Model
from runtime.model.resolve import ModelOrPath, check_path, find, resolve
from runtime.options import OptionsDict, UnseededDict, check_count, check_seed, make_options, make_seeded, takes_options
from runtime.prefixes.prefix import Prefix, open_model
from runtime.prefixes.prefix import load as load_prefix_file
from runtime.prefixes.prefix import make as make_prefix

MAX_SAMPLES = 2**16  # for each prompt: each has a row, made before any is decoded

if TYPE_CHECKING:  # loaded where they are used: importing the package stays quick
    from runtime.tasks.perform import Answer, Task


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    verify: Verify | None = None,
    expect: str | None = None,
    max_memory: int | None = None,
) -> Model:
    """Open a model folder: one that `export/build.py` made, or a plain optimum export of GPT-2 with past-key-values.

    path: the folder; None is the one in $GPT2_EDGE_MODEL, else the only built model under ./models.
    threads: for the products within a pass; None takes every physical core that the process may use.
    verify: what is checked before anything of the folder is opened.
        "full": every byte of every file, by SHA256SUMS; an error where there is none. "size": that the files are
        there, no link leads out of the folder, nor a path in the graph, and no operator is custom; and the sizes, as
        far as a full check recorded them. "off": nothing; trust the folder, since parsers meet its bytes unchecked.
        None: full at first; later only that device, inode, size, times and owner of every file are those that a stamp
        in the user's cache ($GPT2_EDGE_CACHE names another folder) recorded of the full check. Without a cache to
        write to, full every time. A plain export has no checksums: None and "size" check the rest.
    expect: the SHA-256 of the folder's SHA256SUMS, which pins the model; checksums alone prove no authorship. Every
        byte is then read at every load.
    The model is of one state of the folder: where it changes meanwhile the load begins again, and gives up after some
    times. Afterwards, on Linux, nothing that happens to the files changes the model. On other systems some weights stay
    mapped from the file: one that was overwritten is noticed when the next batch begins, and one that is truncated
    during a pass ends the process; replace model folders as a whole, by renaming. SECURITY.md has the details.
    max_memory: bytes that this process may have in memory by `estimate`: a model that would pass it is refused
        before it is opened, and so is a batch or a prefix that would together with those that are open.
    Raises FileNotFoundError, naming the folder or file that is missing; ValueError for one that is damaged or not
    GPT-2's, and for several built models to choose from; MemoryError, with the numbers, where max_memory is passed.
    """
    folder = Path(find() if path is None else check_path(path))
    return Model(folder, threads=threads, verify=verify, expect=expect, max_memory=max_memory)


@takes_options
def generate(
    prompt: str,
    *,
    model: ModelOrPath = None,
    task: str | Task | None = None,
    prefix: Prefix | None = None,
    draft: ModelOrPath = None,
    **options: Unpack[OptionsDict],
) -> str:
    """The continuation of a prompt: the text that follows it, without the prompt itself.

    Without options 64 tokens, greedy: the likeliest each time, as every function here does by default. Greedy text
    soon repeats itself; temperature=0.8, top_p=0.9 writes more freely.

    prompt: any text; an empty one starts from the beginning of a text. Its ids are those that transformers'
        text-generation pipeline feeds: what the tokenizer puts around a text (for GPT-2 nothing) is there, too.
    model: a Model, the path of a model folder, or None: the folder in $GPT2_EDGE_MODEL, else the only built model
        under ./models. A path or None is loaded at its first use and kept.
    task: what to do with the prompt instead, such as "summarize": see `perform`, whose answer's text this returns.
    prefix: of a prompt that begins with its text; the continuation is the same, and comes sooner. See `prefix`.
    draft: a smaller model of the same vocabulary that runs ahead, so that the text comes in fewer passes. At fp32 the
        text is the same; at int8 and int4 some texts differ, see `runtime.generation.speculative`.
    Raises TypeError or ValueError for a wrong option; ValueError when prompt and max_new_tokens pass the model's
    n_positions, unless `overflow` says otherwise, and, after the pieces so far, when options leave no token to choose;
    FileNotFoundError where no model is found.
    """
    if task is None:
        return "".join(stream(prompt, model=model, prefix=prefix, draft=draft, **options))
    if draft is not None:
        raise ValueError("draft does not go with task; leave one of them out")
    return perform(task, prompt, model=model, prefix=prefix, **options).text


@takes_options
def stream(
    prompt: str,
    *,
    model: ModelOrPath = None,
    prefix: Prefix | None = None,
    draft: ModelOrPath = None,
    **options: Unpack[OptionsDict],
) -> Iterator[str]:
    """The continuation of a prompt, in pieces as they are decoded; no piece ends inside a character.

    Takes and raises what `generate` does, and the pieces join to what it returns. What is wrong with the options
    raises here, not at the first piece. Closing the iterator ends the work.
    """
    opened = open_model(model, prefix)
    checked = make_options(options)
    check_seed(checked)
    rows = generation.make_rows(opened, [prompt], [checked], prefix=prefix)
    ahead = open_draft(draft, opened, checked.lookup)
    return (piece for _, piece in generation.stream_pieces(opened, rows, draft=ahead) if piece)


@takes_options
def stream_many(
    prompts: Sequence[str],
    *,
    model: ModelOrPath = None,
    batch_size: int = generation.BATCH_SIZE,
    prefix: Prefix | None = None,
    draft: ModelOrPath = None,
    **options: Unpack[OptionsDict],
) -> Iterator[tuple[int, str]]:
    """The continuations of several prompts, decoded together: (index of the prompt, piece of its continuation).

    Takes what `generate` does; each prompt's pieces join to what `generate` returns for it.
    batch_size: how many decode at a time; the others wait.
    """
    opened = open_model(model, prefix)
    checked, texts = make_options(options), _as_list(prompts)
    check_seed(checked)
    check_count("batch_size", batch_size)
    rows = generation.make_rows(opened, texts, [checked] * len(texts), prefix=prefix)
    pieces = generation.stream_pieces(opened, rows, batch_size, open_draft(draft, opened, checked.lookup))
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
    prefix: Prefix | None = None,
    draft: ModelOrPath = None,
    **options: Unpack[UnseededDict],
) -> list[Completion]:
    """Continuations with all that is known of them, prompt by prompt: `n` for each, every one decoded as if alone.

    A row whose options leave no token to choose ends alone, with finish_reason "no_token".
    Takes what `generate` does, and:
    n: continuations for each prompt, 65,536 at most; more than one needs a temperature above 0, or beams.
    num_beams: above 1, the `n` best of so many beams, best first, by transformers' beam search. Prompts are searched
        one after the other; see `runtime.generation.beam_search.search`.
    length_penalty: beams compare by log-probability / length ** length_penalty; above 0 favours long ones.
    early_stopping: True ends once num_beams are finished; False, when the running ones are no better at their
        present length; "never", when they cannot become better.
    logprobs: how many alternatives to record for each token.
    batch_size: how many rows decode at a time; the others wait. Beams are rows of their own, all at a time.
    seed: one for every prompt, or a sequence with one for each; the same seed writes the same `n` continuations.
    """
    opened, texts = open_model(model, prefix), _as_list(prompts)
    checked = make_seeded(options, seed, len(texts))
    for name, count in (("n", n), ("num_beams", num_beams)):
        check_count(name, count, most=MAX_SAMPLES)
    check_count("batch_size", batch_size)
    check_count("logprobs", logprobs, least=0)
    if logprobs > opened.config.vocab_size:
        raise ValueError(f"logprobs is {logprobs}; the model has {opened.config.vocab_size} tokens")
    ahead = open_draft(draft, opened, checked[0].lookup)
    if num_beams > 1:
        if ahead or checked[0].lookup:
            raise ValueError(f"lookup and draft do not go with num_beams {num_beams}; leave one of them out")
        with importing:
            from runtime.generation import (
                beam_search as beam,
            )  # only where it is used: importing the package stays quick

        shape = beam.Beams(num_beams, n, length_penalty, early_stopping, logprobs)
        return beam.search(opened, texts, checked[0], shape, prefix)
    if length_penalty != 1 or early_stopping is not False:
        raise ValueError("length_penalty and early_stopping are for beam search; set num_beams above 1")
    check_seed(checked[0])
    if n > 1 and checked[0].temperature == 0:
        raise ValueError(f"n is {n}, but at temperature 0 all samples are the same; set temperature or num_beams")
    rows = generation.make_rows(opened, texts, checked, n, logprobs, prefix)
    for _ in generation.generate_pieces(opened, rows, batch_size, ahead):
        pass
    return [row.completion() for row in rows]


def _as_list(prompts: str | Sequence[str]) -> list[str]:
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise TypeError(f"prompts is {prompts!r}; a text or several are expected")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("there are no prompts; give at least one")
    return texts


def perform(
    task: str | Task,
    text: str,
    *,
    model: ModelOrPath = None,
    abstain_below: float | None = None,
    prefix: Prefix | None = None,
    **fields: Any,
) -> Answer:
    """Do what a task says with a text: P(output | input, task), the GPT-2 paper's zero-shot tasks (2019, section 3).

    task: summarize, translate, answer, read, choose, last_word, or a `runtime.tasks.Task` of your own. Printed, a
        task shows its prompt, its fields and its defaults: `print(runtime.tasks.TASKS["translate"])`.
    text: the article, sentence, question, passage ...; white space around it is left out.
    fields: the task's own (a task with `examples` is strictly zero-shot without them, `examples=()`: the instruction
        in plain words and the text), and any option of `generate`, in place of the task's.
        overflow="truncate_left" cuts the beginning of the text, and keeps the rest of the prompt.
    abstain_below: an answer whose confidence is under this probability comes back with the text "".
    prefix: of what the task's prompt begins with, `find_task(task).beginning(**fields)` or longer. See `prefix`.
    Returns an Answer: text, confidence (see `runtime.tasks.Answer` for which probability it is), completion.
    Raises TypeError or ValueError for an unknown task, field or option, naming what there is; for a missing or wrong
    one; for an empty text; and for a prompt that is too long, with the numbers.
    """
    with importing:
        from runtime.tasks import perform as tasks

    return tasks.perform(open_model(model, prefix), task, text, fields, abstain_below, prefix)


def prefix(text: str, *, model: ModelOrPath = None, special_tokens: bool = False) -> Prefix:
    """What many prompts begin with, computed once: few-shot examples, a long article, the start of a conversation.

    `generate(text + question, prefix=prefix(text))` is the very call without `prefix=`: same prompt, same ids, same
    log-probabilities, at every precision. Only the common part is not computed again. A prompt that does not begin
    with the text is a ValueError.
    The common part counts up to the last multiple of `runtime.model.prefill.PREFILL_STEP` tokens: a shorter text is
    kept in vain. Where the text and what follows make other tokens at the seam, the common part ends before it.
    special_tokens: as it is given to `generate`.
    It takes 8 * n_layer * n_embd bytes a token: 73,728 for GPT-2 124M.
    Raises ValueError for an empty text and for one that passes the model's n_positions.
    """
    return make_prefix(resolve(model), text, special_tokens)


def load_prefix(path: str | os.PathLike[str], *, model: ModelOrPath = None) -> Prefix:
    """Open what `Prefix.save` wrote, with the model it was made with.

    Raises FileNotFoundError; ValueError for the file of another model, precision or tokenizer, one that another
    onnxruntime or kind of processor computed (results would not be the same to the last bit), and one that is
    damaged or foreign. Make the prefix again then.
    """
    return load_prefix_file(resolve(model), Path(path))
