#!/usr/bin/env python3
"""Build a model folder from a GPT-2 checkpoint: export, quantize, verify, publish.

python export/build.py                          OpenAI's gpt2, downloaded once
python export/build.py models/demo              the checkpoint that comes with this repository
python export/build.py random:gpt2 --no-reference
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, whatever the directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ENDS = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
INTERRUPTED = "interrupted: nothing was changed"
MISSING = "error: {name} is not installed; pip install -e '.[export-light]' in the clone brings all that building needs"
try:
    from safetensors import SafetensorError

    from export import (
        card,
        conversion,
        folder,
        golden,
        needs,
        own_writing,
        pickle_file,
        provenance,
        quality,
        reference,
        tokenizer,
    )
    from export.arguments import BuildOptions, parse
    from export.checkpoint import RANDOM, Checkpoint, check_folder, open_checkpoint
    from export.config import Config
    from export.failures import explain
    from export.genai_config import NAME as GENAI_CONFIG
    from export.genai_config import genai_config
    from export.json_file import write_json
    from export.quantize.precision import Float32
    from export.random_checkpoint import SIZES
except KeyboardInterrupt:  # these take a second
    if __name__ != "__main__":
        raise
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)
except ModuleNotFoundError as error:
    if __name__ != "__main__" or str(error.name).startswith(("export", "runtime")):
        raise
    sys.exit(MISSING.format(name=error.name))

VERSIONED = ("onnx", "onnxruntime", "numpy", "tokenizers")  # what a build's figures may depend on
EVALUATION_TEXT = Path(__file__).with_name("evaluation.txt")


def main(arguments: list[str] | None = None, *, before_publication: Callable[[], object] = lambda: None) -> None:
    """Build one model folder; raises for whatever goes wrong, with the earlier output untouched."""
    options = parse(arguments)
    check_before_work(options)
    with workspaces(options) as (work, reference_work):
        say(1, f"checkpoint: {options.checkpoint}")
        checkpoint = open_with_room(options, work)
        attempts = options.attempts(widths(checkpoint))
        check_text(checkpoint, options)

        say(2, f"reference: {options.reference_text}")
        make_reference(checkpoint, options, reference_work / "reference")

        options, measured = make_and_verify(checkpoint, attempts, reference_work / "reference", work)

        say(5, f"publication: {options.output}")
        describe(checkpoint, options, measured, work / "model")
        before_publication()
        if options.keep_reference:
            folder.publish(reference_work / "reference", options.keep_reference, reference_work)
        folder.publish(work / "model", options.output, work)
    print(f"built {options.output}")


@contextlib.contextmanager
def workspaces(options: BuildOptions) -> Iterator[tuple[Path, Path]]:
    """Where the model is made, and where the reference: beside their places, so that to publish is to rename."""
    with folder.workspace(options.output, force=options.force) as work:
        if options.keep_reference is None:
            yield work, work
        else:
            with folder.workspace(options.keep_reference) as reference_work:
                yield work, reference_work


def check_before_work(options: BuildOptions) -> None:
    """Raise for what would only fail after the work: a place that is taken, a missing optimum."""
    folder.check_output(options.output, force=options.force)
    if options.keep_reference and options.keep_reference.exists():
        raise FileExistsError(f"{options.keep_reference} is there already; --keep-reference names a new folder")
    if options.eval_text and not options.eval_text.is_file():
        raise FileNotFoundError(f"no text at {options.eval_text}; --eval-text names a file")
    if options.allow_pickle:
        pickle_file.check_installed()
    if Path(options.checkpoint).exists():
        check_folder(Path(options.checkpoint))
    if options.needs_reference and not options.no_reference:
        reference.check_installed()


def open_with_room(options: BuildOptions, work: Path) -> Checkpoint:
    """Open the checkpoint and say what the build needs, before a random one is written, as soon as others are read.

    Raises OSError for too little disk, ValueError for too little memory.
    """
    size = SIZES[options.checkpoint.removeprefix(RANDOM)] if options.is_random else None
    if size:
        say_needs(size, options, options.eval_text or EVALUATION_TEXT)
    named: dict[str, Any] = {name: getattr(options, name) for name in ("tokenizer", "revision", "allow_pickle")}
    checkpoint = open_checkpoint(options.checkpoint, work, **named)
    if not size:
        say_needs(checkpoint.config, options, evaluation_text(checkpoint, options))
    return checkpoint


def check_text(checkpoint: Checkpoint, options: BuildOptions) -> None:
    """Raise ValueError for a text to verify on that is too short, or not UTF-8."""
    text = None if options.verify == "none" else evaluation_text(checkpoint, options)
    if text:
        encode = functools.partial(tokenizer.encode, checkpoint.folder)
        content, _ = quality.read_text(text, encode, options.least_tokens)
        own_writing.check_written(tokenizer.read(checkpoint.folder), content, text)


def say_needs(config: Config, options: BuildOptions, text: Path | None) -> None:
    """One line: what the build needs, and what is free."""
    n_bytes = text.stat().st_size if text else own_writing.N_TOKENS * needs.BYTES_PER_TOKEN
    needed = needs.estimate(config, options, n_bytes)
    print(f"      {needed.check(options.output, options.less_memory)}", flush=True)


def make_reference(checkpoint: Checkpoint, options: BuildOptions, target: Path) -> None:
    """optimum's own export, or with --no-reference this project's fused graph in fp32."""
    if not options.needs_reference:
        return
    if options.no_reference:
        conversion.convert(checkpoint, Float32(), target)
    else:
        reference.export_reference(checkpoint.folder, target)
        folder.write_tokenizer_and_config(checkpoint, target)


def make_and_verify(
    checkpoint: Checkpoint, attempts: Sequence[BuildOptions], reference: Path, work: Path
) -> tuple[BuildOptions, quality.Quality | None]:
    """The first attempt that loses little, else the last; raises ValueError where that one loses too much."""
    for options in attempts:
        say(3, f"model: the fused graph, {options.precision_text}")
        conversion.make_model(checkpoint, options, work)
        say(4, f"verification: {'none' if options.verify == 'none' else text_name(checkpoint, options)}")
        measured = verify(checkpoint, options, work / "model", reference, work)
        if options is attempts[-1] or measured is None or measured.loss_percent <= options.dense_max_loss:
            break
        print(f"      more than {options.dense_max_loss} %: {attempts[-1].precision_text} instead", flush=True)
        shutil.rmtree(work / "model")
    if measured and not checkpoint.is_random:
        measured.check(options.max_loss, options.less_loss)
    return options, measured


def verify(
    checkpoint: Checkpoint, options: BuildOptions, model: Path, reference: Path, work: Path
) -> quality.Quality | None:
    """Measure the loss against the reference, and print it."""
    if options.verify == "none":
        return None
    text = evaluation_text(checkpoint, options)
    at_least = options.least_tokens
    measured = quality.measure_quality(model, reference, options.reference_text, text, work, at_least=at_least)
    print(card.quality_text(checkpoint, measured))
    return measured


def describe(checkpoint: Checkpoint, options: BuildOptions, measured: quality.Quality | None, target: Path) -> None:
    """What the model writes, what it lost, the card and the checksums."""
    known = provenance.recognize(checkpoint.folder)
    outputs = golden.record(target, options.precision) | provenance.recorded_outputs(known)
    write_json(target / golden.NAME, outputs)
    write_json(target / GENAI_CONFIG, genai_config(checkpoint.config))
    report: dict[str, Any] = {"verified": measured is not None, "random_weights": checkpoint.is_random}
    report |= {"precision": options.precision, "kernel": options.kernel, "block_size": options.block_size}
    report |= {"calibrated": options.calibrates} if options.precision == "int4" else {}
    report |= {"weights": known.said} if known else {}
    report |= {"versions": {name: importlib.metadata.version(name) for name in VERSIONED}}
    write_json(target / "quality.json", report | (dataclasses.asdict(measured) if measured else {}))
    card.write_card(target, checkpoint, options, measured, weights=known.said if known else None)
    folder.write_checksums(target)


def evaluation_text(checkpoint: Checkpoint, options: BuildOptions) -> Path | None:
    """The user's text; else the checkpoint's own evaluation.txt, where it has one; else plain English exposition.

    None for the model's own writing: its vocabulary has not the words of these.
    """
    if options.eval_text:
        return options.eval_text
    own = checkpoint.folder / EVALUATION_TEXT.name
    text = own if own.is_file() else EVALUATION_TEXT
    return text if own_writing.can_write_file(tokenizer.read(checkpoint.folder), text) else None


def text_name(checkpoint: Checkpoint, options: BuildOptions) -> str:
    """What the model is verified on."""
    text = evaluation_text(checkpoint, options)
    return text.name if text else own_writing.NAME


def widths(checkpoint: Checkpoint) -> list[int]:
    """Of the rows of all products."""
    return sorted({checkpoint.config.n_embd, checkpoint.config.inner_size})


def say(step: int, what: str) -> None:
    """Announce a step."""
    print(f"[{step}/5] {what}", flush=True)


def run() -> int:
    """`main` for a terminal: errors as one line. 0 done, 1 failed, 2 wrong usage, above 128 ended by a signal."""
    try:
        main(before_publication=ignore_interrupts)
    except KeyboardInterrupt as error:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    except MemoryError:
        print("error: not enough memory; nothing was changed", file=sys.stderr)
        return 1
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    return 0


def interrupt(number: int, _frame: object) -> None:
    """Ends the build as Ctrl-C does, so that it leaves nothing behind."""
    raise KeyboardInterrupt(number)


def ignore_interrupts() -> None:
    """From here on Ctrl-C comes too late: the renames take no time, and what follows only cleans up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ENDS:
        if signal.getsignal(getattr(signal, name)) is interrupt:
            signal.signal(getattr(signal, name), signal.SIG_IGN)


if __name__ == "__main__":
    for name in ENDS:
        if signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(getattr(signal, name), interrupt)
    sys.exit(run())
