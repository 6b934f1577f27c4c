"""What each command of `gpt2-edge` does. Each function takes the parsed arguments and returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import runtime
from runtime._checks import check_count
from runtime.api import MAX_SAMPLES, check_samples
from runtime.cli.export_stage import HOW_TO_GET_IT, find_build_script, run_build_script
from runtime.cli.interactive import ask, is_at_terminal
from runtime.cli.output import as_json, as_table, print_line, say, say_speed, show_progress, to_json
from runtime.generation.completion import Completion
from runtime.generation.loop import generate_pieces, make_rows
from runtime.generation.speculation.proposers import open_draft
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.model.resolve import find
from runtime.options import make_options, make_seeded

if TYPE_CHECKING:
    from runtime.cli.surprisal import Source

# The values of transformers' early_stopping.
EARLY_STOPPING = {"no": False, "yes": True, "never": "never"}
# What --jsonl stores in the place of --json.
LINES = "lines"


class _Opened(NamedTuple):
    """The models and the prefix that the arguments name."""

    model: Model
    draft: Model | None
    prefix: runtime.Prefix | None


@contextlib.contextmanager
def _open(given: argparse.Namespace) -> Iterator[_Opened]:
    """Load what --model, --draft and --prefix name, where the command has them; close the models at the end."""
    draft = getattr(given, "draft", None)
    prefix = getattr(given, "prefix", None)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(_load(given, given.model))
        yield _Opened(
            model,
            None if draft is None else stack.enter_context(_load(given, draft)),
            None if prefix is None else runtime.load_prefix(prefix, model=model),
        )


def _load(given: argparse.Namespace, folder: str | None) -> Model:
    return runtime.load(folder, threads=given.threads, verify=given.verify, cache=given.cache)


class _Timer:
    """`seconds` is how long the block of a `with` has taken."""

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self._start


def generate(given: argparse.Namespace) -> int:
    """Stream the continuation of a prompt; without one, a terminal asks for prompts until it is closed."""
    with _open(given) as opened:
        if given.prompt is None and is_at_terminal():
            return ask(lambda prompt: _generate_one(opened, prompt, given))
        _generate_one(opened, _text(given.prompt), given)
    return 0


def _generate_one(opened: _Opened, prompt: str, given: argparse.Namespace) -> None:
    model, draft, prefix = opened
    options = make_options(given.options)
    [row] = make_rows(model, [prompt], [options], n_top=0 if given.json else None, prefix=prefix)
    for _, piece in generate_pieces(model, [row], draft=open_draft(draft, model, options.lookup)):
        if not given.json:
            print(piece, end="", flush=True)
    completion = row.completion()
    print(as_json(completion) if given.json else "")
    if given.verbose:
        say_speed([completion], completion.prefill_seconds + completion.decode_seconds)


def complete(given: argparse.Namespace) -> int:
    """Continuations of several prompts: each under a line that names it, as a JSON list, or as lines of JSON."""
    prompts = _read_input().splitlines() if given.prompts in ([], ["-"]) else given.prompts
    completions: list[Completion] = []
    with _open(given) as opened, _Timer() as timer:
        found = _as_they_end(opened, prompts, given) if given.json == LINES else _complete(opened, prompts, given)
        for completion in found:
            completions.append(completion)
            if given.json == LINES:
                print_line(dataclasses.asdict(completion))
    if given.json is True:
        print(to_json([dataclasses.asdict(completion) for completion in completions]))
    elif not given.json:
        for one in completions:
            head = f"--- prompt {one.prompt_index}, sample {one.sample_index}"
            print(f"{head}: {one.finish_reason}, logprob {one.logprob:.2f}")
            print(one.text)
    if given.verbose:
        say_speed(completions, timer.seconds)
    return 0


def _complete(opened: _Opened, prompts: list[str], given: argparse.Namespace) -> list[Completion]:
    names = ("n", "num_beams", "length_penalty", "logprobs", "batch_size")
    options = {name: getattr(given, name) for name in names} | given.options
    options["early_stopping"] = EARLY_STOPPING[given.early_stopping]
    return runtime.complete(prompts, model=opened.model, prefix=opened.prefix, draft=opened.draft, **options)


def infill(given: argparse.Namespace) -> int:
    """What may stand between a prompt and a suffix: the likeliest, or all that were sampled as JSON."""
    with _open(given) as opened, _Timer() as timer:
        middles = runtime.infill(
            given.prompt,
            given.suffix,
            model=opened.model,
            prefix=opened.prefix,
            best_of=given.best_of,
            batch_size=given.batch_size,
            **given.options,
        )
    if given.json:
        print(to_json([dataclasses.asdict(one.completion) | {"suffix_logprob": one.suffix.logprob} for one in middles]))
    else:
        print(middles[0].text)
    if given.verbose:
        say_speed([one.completion for one in middles], timer.seconds)
    return 0


def _as_they_end(opened: _Opened, prompts: list[str], given: argparse.Namespace) -> Iterator[Completion]:
    """What `_complete` returns, each as soon as it is known."""
    if not prompts:
        yield from _complete(opened, prompts, given)
        return
    if given.num_beams > 1 or given.length_penalty != 1 or given.early_stopping != "no":
        # Prompts are searched one after the other.
        for index, prompt in enumerate(prompts):
            for completion in _complete(opened, [prompt], given):
                yield dataclasses.replace(completion, prompt_index=index)
        return
    options = dict(given.options)
    checked = make_seeded(options, options.pop("seed", None), len(prompts))
    check_count("n", given.n, most=MAX_SAMPLES)
    check_count("logprobs", given.logprobs, least=0, most=opened.model.config.vocab_size)
    check_samples(checked[0], given.n)
    rows = make_rows(opened.model, prompts, checked, given.n, given.logprobs, opened.prefix)
    draft = open_draft(opened.draft, opened.model, checked[0].lookup)
    waiting = {id(row) for row in rows}
    for row, _ in generate_pieces(opened.model, rows, given.batch_size, draft):
        if row.finish_reason is not None and id(row) in waiting:
            waiting.remove(id(row))
            yield row.completion()


def score(given: argparse.Namespace) -> int:
    """Log-probability and perplexity of a text, or of the continuation of a context."""
    text = _text(given.text)
    _check_score(given)
    with _open(given) as opened, _Timer() as timer:
        if given.context is None:
            result = runtime.score_text(text, model=opened.model, stride=given.stride)
        else:
            result = runtime.score(
                text, context=given.context, model=opened.model, overflow=given.overflow, prefix=opened.prefix
            )
    n = len(result.ids)
    if given.json:
        print(as_json(result, logprob=result.logprob, perplexity=result.perplexity))
    else:
        print(f"logprob {result.logprob:.4f}, perplexity {result.perplexity:.4f}, {n} tokens")
    if given.verbose:
        say(f"{n} tokens in {timer.seconds:.2f} s: {n / timer.seconds:.1f} tokens/s")
    return 0


def _check_score(given: argparse.Namespace) -> None:
    if given.context is None and given.overflow != "error":
        raise ValueError("--overflow is for a --context; a text without one may be of any length")
    if given.context is None and given.prefix is not None:
        raise ValueError("--prefix is of a --context; of a text without one every token is scored")
    if given.context is not None and given.stride is not None:
        raise ValueError("--stride is for a text without --context, which may be longer than the model's context")


def surprisal(given: argparse.Namespace) -> int:
    """Surprisal of every word or token of some texts, and how far another build of the model is from it."""
    from runtime.cli.surprisal import print_surprisals, read_texts

    texts = read_texts(given, _read_input)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(_open(given)).model
        reference = None if given.reference is None else stack.enter_context(_load(given, given.reference))
        timer = stack.enter_context(_Timer())
        n = print_surprisals(given, texts, model, reference)
    if given.verbose:
        say(f"{n} tokens in {timer.seconds:.2f} s: {n / timer.seconds:.1f} tokens/s")
    return 0


def classify(given: argparse.Namespace) -> int:
    """The labels that a classifier gives some texts."""
    from runtime.cli.heads import print_labels, read_texts

    return _of_texts(given, read_texts(given, _read_input), print_labels)


def embed(given: argparse.Namespace) -> int:
    """Embeddings of some texts."""
    from runtime.cli.heads import read_texts, write_embeddings

    return _of_texts(given, read_texts(given, _read_input), write_embeddings)


def _of_texts(
    given: argparse.Namespace,
    sources: Sequence[Source],
    work: Callable[[argparse.Namespace, Sequence[Source], Model], int],
) -> int:
    with _open(given) as opened, _Timer() as timer:
        n = work(given, sources, opened.model)
    if given.verbose:
        say(f"{n} texts in {timer.seconds:.2f} s: {n / timer.seconds:.1f} texts/s")
    return 0


def perform(given: argparse.Namespace) -> int:
    """Do a task with a text, or show the task."""
    if given.show:
        from runtime.tasks.perform import find_task

        print(find_task(given.task))
        return 0
    text = _text(given.text)
    fields = dict(_field(field) for field in given.field) | given.options
    with _open(given) as opened, _Timer() as timer:
        answer = runtime.perform(
            given.task, text, model=opened.model, prefix=opened.prefix, abstain_below=given.abstain_below, **fields
        )
    print(as_json(answer) if given.json else answer.text)
    if given.verbose:
        confidence = "" if answer.confidence is None else f", confidence {answer.confidence:.4f}"
        say(f"{timer.seconds:.2f} s{confidence}")
    return 0


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--field {text!r} is no NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        # Plain text.
        return name, value


def prefix(given: argparse.Namespace) -> int:
    """Compute the beginning of many prompts, write it to a file, and say how much of it is not computed again."""
    text = _read_input() if given.text == "-" else given.text
    with _open(given) as opened, _Timer() as timer:
        made = runtime.prefix(text, model=opened.model, special_tokens=given.special_tokens)
        n = len(made.ids)
        n_kept = made.n_kept
        if not n_kept:
            raise ValueError(
                f"a prefix of {n} tokens would save nothing: it counts in steps of {PREFILL_STEP} tokens; "
                f"{given.output} is not written, and prompts need no prefix"
            )
        made.save(given.output)
    facts = {"tokens": n, "kept": n_kept, "bytes": made.nbytes}
    print(to_json(facts) if given.json else f"{n_kept} of {n} tokens kept, {made.nbytes / 1e6:.1f} MB")
    if given.verbose:
        say(f"{timer.seconds:.2f} s")
    return 0


def evaluate(given: argparse.Namespace) -> int:
    """Accuracy or perplexity on a file, with the progress on standard error."""
    with _open(given) as opened, _Timer() as timer:
        report = runtime.evaluate(given.task, given.file, model=opened.model, limit=given.limit, progress=show_progress)
    print(to_json(report) if given.json else as_table(report))
    if given.verbose:
        say(f"{timer.seconds:.2f} s")
    return 0


def serve(given: argparse.Namespace) -> int:
    """Serve one model or several over HTTP until a signal ends it."""
    from runtime.server_settings import read_settings

    try:
        settings = read_settings(given)
    except ValueError as error:
        given.parser.error(str(error))
    try:
        from runtime.server.transport.listener import serve as serve_models
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{error.name} is missing: pip install 'gpt2-edge[server]', or in a clone pip install ./runtime/server"
        ) from None
    with contextlib.ExitStack() as stack:
        models = [stack.enter_context(_load(given, folder)) for folder in given.model or [None]]
        serve_models(models, settings, verbose=given.verbose)
    return 0


def build(given: argparse.Namespace) -> int:
    """Build a model folder: a process of its own, which takes the place of this one."""
    script = find_build_script()
    if script is None:
        raise RuntimeError(f"the export stage is not installed. {HOW_TO_GET_IT}")
    return run_build_script(script, given.arguments)


def check(given: argparse.Namespace) -> int:
    """One line that says whether this device runs the model as it should."""
    from runtime.diagnostics.check import check_folder

    result = check_folder(_folder(given), given.threads)
    print(as_json(result, passed=result.passed) if given.json else result)
    return 0 if result.passed else 1


def info(given: argparse.Namespace) -> int:
    """What the folder holds, and whether the processor suits it."""
    from runtime.diagnostics.info import describe

    facts = describe(_folder(given))
    print(to_json(facts) if given.json else as_table(facts))
    return 0


def _folder(given: argparse.Namespace) -> Path:
    return Path(given.model) if given.model else find()


def _text(given: str | None) -> str:
    """The text of an argument; `-` or none is standard input."""
    return _read_input() if given in (None, "-") else given


def _read_input() -> str:
    if sys.stdin is None:
        raise ValueError("standard input is closed; give the text as an argument")
    if is_at_terminal():
        end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
        print(f"Reading the text from the terminal; {end} on a line of its own ends it.", file=sys.stderr)
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8: {error}") from None
