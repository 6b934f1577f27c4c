"""What each command of `gpt2-edge` does; returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import runtime
from runtime.cli.interactive import ask, is_at_terminal
from runtime.cli.output import as_json, as_table, say_speed, show_progress, to_json
from runtime.generation.loop import generate_pieces, make_rows
from runtime.generation.proposers import open_draft
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.model.resolve import find
from runtime.options import make_options

EARLY_STOPPING = {"no": False, "yes": True, "never": "never"}  # transformers' values


def generate(given: argparse.Namespace) -> int:
    """Stream the continuation of a prompt; without one, a terminal asks for prompts until it is closed."""
    with runtime.load(given.model, threads=given.threads, verify=given.verify) as model, _load_draft(given) as draft:
        prefix = _load_prefix(given, model)
        if given.prompt is None and is_at_terminal():
            return ask(lambda prompt: _generate_one(model, draft, prefix, prompt, given))
        text = _read_input() if given.prompt in (None, "-") else given.prompt
        _generate_one(model, draft, prefix, text, given)
    return 0


def _load_draft(given: argparse.Namespace) -> contextlib.AbstractContextManager[Model | None]:
    return (
        contextlib.nullcontext()
        if given.draft is None
        else runtime.load(given.draft, threads=given.threads, verify=given.verify)
    )


def _load_prefix(given: argparse.Namespace, model: Model) -> runtime.Prefix | None:
    return None if given.prefix is None else runtime.load_prefix(given.prefix, model=model)


def _generate_one(
    model: Model, draft: Model | None, prefix: runtime.Prefix | None, prompt: str, given: argparse.Namespace
) -> None:
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
    """Continuations of several prompts, each under a line that names it, or as a JSON list."""
    prompts = _read_input().splitlines() if given.prompts in ([], ["-"]) else given.prompts
    names = ("n", "num_beams", "length_penalty", "logprobs", "batch_size")
    options = {name: getattr(given, name) for name in names} | given.options
    options["early_stopping"] = EARLY_STOPPING[given.early_stopping]
    with runtime.load(given.model, threads=given.threads, verify=given.verify) as model, _load_draft(given) as draft:
        prefix, start = _load_prefix(given, model), time.perf_counter()
        completions = runtime.complete(prompts, model=model, prefix=prefix, draft=draft, **options)
        seconds = time.perf_counter() - start
    if given.json:
        print(to_json([dataclasses.asdict(c) for c in completions]))
    else:
        for c in completions:
            print(f"--- prompt {c.prompt_index}, sample {c.sample_index}: {c.finish_reason}, logprob {c.logprob:.2f}")
            print(c.text)
    if given.verbose:
        say_speed(completions, seconds)
    return 0


def score(given: argparse.Namespace) -> int:
    """Log-probability and perplexity of a text, or of the continuation of a context."""
    text = _read_input() if given.text in (None, "-") else given.text
    if given.context is None and given.overflow != "error":
        raise ValueError("--overflow is for a --context; a text without one may be of any length")
    if given.context is None and given.prefix is not None:
        raise ValueError("--prefix is of a --context; of a text without one every token is scored")
    if given.context is not None and given.stride is not None:
        raise ValueError("--stride is for a text without --context, which may be longer than the model's")
    with runtime.load(given.model, threads=given.threads, verify=given.verify) as model:
        prefix, start = _load_prefix(given, model), time.perf_counter()
        if given.context is None:
            result = runtime.score_text(text, model=model, stride=given.stride)
        else:
            result = runtime.score(text, context=given.context, model=model, overflow=given.overflow, prefix=prefix)
        seconds = time.perf_counter() - start
    n = len(result.ids)
    if given.json:
        print(as_json(result, logprob=result.logprob, perplexity=result.perplexity))
    else:
        print(f"logprob {result.logprob:.4f}, perplexity {result.perplexity:.4f}, {n} tokens")
    if given.verbose:
        print(f"{n} tokens in {seconds:.2f} s: {n / seconds:.1f} tokens/s", file=sys.stderr)
    return 0


def perform(given: argparse.Namespace) -> int:
    """Do a task with a text, or show the task."""
    if given.show:
        from runtime.tasks.perform import find_task

        print(find_task(given.task))
        return 0
    text = _read_input() if given.text in (None, "-") else given.text
    fields = dict(_field(field) for field in given.field) | given.options
    with runtime.load(given.model, threads=given.threads, verify=given.verify) as model:
        prefix, start = _load_prefix(given, model), time.perf_counter()
        answer = runtime.perform(
            given.task, text, model=model, prefix=prefix, abstain_below=given.abstain_below, **fields
        )
        seconds = time.perf_counter() - start
    print(as_json(answer) if given.json else answer.text)
    if given.verbose:
        confidence = "" if answer.confidence is None else f", confidence {answer.confidence:.4f}"
        print(f"{seconds:.2f} s{confidence}", file=sys.stderr)
    return 0


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--field {text!r} is no NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:  # plain text
        return name, value


def prefix(given: argparse.Namespace) -> int:
    """Keep what many prompts begin with in a file, and say how much of it the calls to come are spared."""
    text = _read_input() if given.text == "-" else given.text
    with runtime.load(given.model, threads=given.threads, verify=given.verify) as model:
        start = time.perf_counter()
        made = runtime.prefix(text, model=model, special_tokens=given.special_tokens)
        n, n_kept, nbytes = len(made.ids), made.n_kept, made.nbytes
        if not n_kept:
            raise ValueError(
                f"a prefix of {n} tokens would save nothing: it counts in steps of {PREFILL_STEP} tokens; "
                f"{given.output} is not written, and prompts need no prefix"
            )
        made.save(given.output)
        seconds = time.perf_counter() - start
    facts = {"tokens": n, "kept": n_kept, "bytes": nbytes}
    print(to_json(facts) if given.json else f"{n_kept} of {n} tokens kept, {nbytes / 1e6:.1f} MB")
    if given.verbose:
        print(f"{seconds:.2f} s", file=sys.stderr)
    return 0


def evaluate(given: argparse.Namespace) -> int:
    """What a file measures of a model, as JSON; progress on standard error."""
    with runtime.load(given.model, threads=given.threads, verify=given.verify) as model:
        start = time.perf_counter()
        report = runtime.evaluate(given.task, given.file, model=model, limit=given.limit, progress=show_progress)
        seconds = time.perf_counter() - start
    print(to_json(report) if given.json else as_table(report))
    if given.verbose:
        print(f"{seconds:.2f} s", file=sys.stderr)
    return 0


def serve(given: argparse.Namespace) -> int:
    """Serve a model over HTTP until a signal ends it."""
    from runtime.server_settings import read_settings

    try:
        settings = read_settings(given)
    except ValueError as error:
        given.parser.error(str(error))
    try:
        from runtime.server.transport.listener import serve as serve_model
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{error.name} is missing: pip install 'gpt2-edge[server]', or in a clone pip install ./runtime/server"
        ) from None
    with runtime.load(given.model, threads=given.threads, verify=given.verify) as model:
        serve_model(model, settings, verbose=given.verbose)
    return 0


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
