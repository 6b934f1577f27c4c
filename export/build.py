#!/usr/bin/env python3
"""Build a model folder from a GPT-2 checkpoint: export, quantize, verify, publish.

python export/build.py                          OpenAI's gpt2, downloaded once
python export/build.py models/demo              the checkpoint that comes with this repository
python export/build.py random:gpt2 --no-reference
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = "interrupted: nothing was changed"


def leave(_number: int, _frame: object) -> None:
    """Ends the command while modules are imported: they take a second, and would report an exception themselves."""
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)

import contextlib
import dataclasses
import functools
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the clone, whatever the directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ENDS = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
MISSING = "error: {name} is not installed; pip install -e '.[export-light]' in the clone brings all that building needs"
try:
    from safetensors import SafetensorError

    from export import conversion, needs
    from export.arguments import BuildOptions, parse
    from export.checkpoint import pickle_file, provenance, tokenizer
    from export.checkpoint.checkpoint import RANDOM, Checkpoint, open_checkpoint
    from export.checkpoint.config import Config
    from export.checkpoint.diagnosis import check_folder
    from export.checkpoint.random_weights import SIZES
    from export.failures import explain
    from export.folder import card, folder
    from export.folder.genai_config import NAME as GENAI_CONFIG
    from export.folder.genai_config import genai_config
    from export.graph import reference
    from export.json_file import write_json
    from export.quantize.calibration import Calibration
    from export.verify import golden, ladder, own_writing, quality
    from runtime.model.integrity import GOLDEN, QUALITY
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
        options.check_widths(widths(checkpoint))
        check_texts(checkpoint, options)

        say(2, f"reference: {options.reference_text}")
        make_reference(checkpoint, options, reference_work / "reference")

        say(3, f"calibration: {options.calibration_said}")
        found = conversion.calibrate(checkpoint, options, work) if options.calibrates else None

        built = make_and_verify(checkpoint, options, found, reference_work / "reference", work)

        say(6, f"publication: {options.output}")
        describe(checkpoint, options, built, work / "model")
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
    for option, path in (("--eval-text", options.eval_text), ("--calibration-text", options.calibration_text)):
        if path and not path.is_file():
            raise FileNotFoundError(f"no text at {path}; {option} names a file")
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


def check_texts(checkpoint: Checkpoint, options: BuildOptions) -> None:
    """Raise ValueError for a text to verify or calibrate on that is too short, not UTF-8, or of other words."""
    if options.calibration_text:
        conversion.read_calibration_text(checkpoint, options.calibration_text)
    text = None if options.verify == "none" else evaluation_text(checkpoint, options)
    if text:
        encode = functools.partial(tokenizer.encode, checkpoint.tokenizer_folder)
        content, _ = quality.read_text(text, encode, options.least_tokens)
        own_writing.check_written(tokenizer.read(checkpoint.tokenizer_folder), content, text, "--eval-text")


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
        conversion.make_fp32(checkpoint, target)
    else:
        reference.export_reference(checkpoint.folder, target)
        folder.write_tokenizer_and_config(checkpoint, target)


@dataclasses.dataclass(frozen=True)
class Built:
    """What the build made, in the folder of the model."""

    measured: quality.Quality | None  # None: not verified
    found: Calibration | None  # None: not calibrated
    upgraded: conversion.Kernels


def make_and_verify(
    checkpoint: Checkpoint, options: BuildOptions, found: Calibration | None, reference: Path, work: Path
) -> Built:
    """Make the model; while it loses too much, give the products that lose most a better kernel.

    Raises ValueError for a model whose logits are not numbers, and where no product has a better kernel left.
    """
    upgraded: dict[str, str] = {}
    verifier = None
    text = "none" if options.verify == "none" else text_name(checkpoint, options)
    while True:
        say(4, f"model: the fused graph, {options.precision_text}{upgrades_said(upgraded)}")
        conversion.make_model(checkpoint, options, work, found, upgraded)
        say(5, f"verification: {text}")
        if options.verify == "none":
            return Built(None, found, upgraded)
        verifier = verifier or open_verifier(checkpoint, options, reference, work)
        measured = verifier.measure(work / "model")
        print(card.quality_text(checkpoint, measured), flush=True)
        if checkpoint.is_random:
            return Built(measured, found, upgraded)
        measured.check_numbers()
        if measured.excess(options.bounds) <= 1:
            return Built(measured, found, upgraded)
        upgraded = better_kernels(checkpoint, options, found, upgraded, measured)
        shutil.rmtree(work / "model")


def open_verifier(checkpoint: Checkpoint, options: BuildOptions, reference: Path, work: Path) -> quality.Verifier:
    """Run the reference over the evaluation text."""
    text = evaluation_text(checkpoint, options)
    return quality.Verifier(reference, options.reference_text, text, work, at_least=options.least_tokens)


def better_kernels(
    checkpoint: Checkpoint,
    options: BuildOptions,
    found: Calibration | None,
    upgraded: dict[str, str],
    measured: quality.Quality,
) -> dict[str, str]:
    """The kernels for the next attempt. Raises ValueError where there are none."""
    print(f"      too much is lost: {measured.said(options.bounds)}", flush=True)
    if found is not None:
        climbed = ladder.climb(found, upgraded, measured.excess(options.bounds))
    else:
        usual = conversion.usual_kernels(checkpoint.config, options)
        climbed = ladder.climb_together(usual, upgraded, widths(checkpoint))
    if climbed == upgraded:
        raise ValueError(
            f"the model loses too much with the most exact kernels: {measured.said(options.bounds)}; not published. "
            "Its weights may be damaged; --max-kl NATS and --max-loss PERCENT allow more"
        )
    return climbed


def upgrades_said(upgraded: conversion.Kernels) -> str:
    """Which products have a better kernel, for the progress."""
    if not upgraded:
        return ""
    named = ", ".join(f"{name} {kernel}" for name, kernel in upgraded.items())
    return f", {len(upgraded)} product(s) with a better kernel: {named}"


def describe(checkpoint: Checkpoint, options: BuildOptions, built: Built, target: Path) -> None:
    """What the model writes, what it lost, the card and the checksums."""
    known = provenance.recognize(checkpoint.folder)
    outputs = golden.record(target, options.precision) | provenance.recorded_outputs(known)
    write_json(target / GOLDEN, outputs)
    write_json(target / GENAI_CONFIG, genai_config(checkpoint.config))
    measured = built.measured
    report: dict[str, Any] = {"verified": measured is not None, "random_weights": checkpoint.is_random}
    report |= {"precision": options.precision, "kernel": options.kernel_kind, "block_size": options.block_size}
    report |= {"calibrated": built.found is not None, "upgraded": upgrades(built)}
    report |= {"weights": known.said} if known else {}
    report |= {"versions": {name: importlib.metadata.version(name) for name in VERSIONED}}
    write_json(target / QUALITY, report | (dataclasses.asdict(measured) if measured else {}))
    card.write_card(target, checkpoint, options, measured, upgrades(built), weights=known.said if known else None)
    folder.write_checksums(target)


def upgrades(built: Built) -> list[dict[str, Any]]:
    """The products that have a better kernel than usual, with the relative errors of both where they are known."""
    listed: list[dict[str, Any]] = []
    for name, kernel in built.upgraded.items():
        errors = built.found.errors[name] if built.found else {}
        usual = {"usual_error": next(iter(errors.values())), "error": errors[kernel]} if errors else {}
        listed.append({"product": name, "kernel": kernel, **usual})
    return listed


def evaluation_text(checkpoint: Checkpoint, options: BuildOptions) -> Path | None:
    """The user's text; else the checkpoint's own evaluation.txt, where it has one; else plain English exposition.

    None for the model's own writing: its vocabulary has not the words of these.
    """
    if options.eval_text:
        return options.eval_text
    own = checkpoint.folder / EVALUATION_TEXT.name
    text = own if own.is_file() else EVALUATION_TEXT
    return text if own_writing.can_write_file(tokenizer.read(checkpoint.tokenizer_folder), text) else None


def text_name(checkpoint: Checkpoint, options: BuildOptions) -> str:
    """What the model is verified on."""
    text = evaluation_text(checkpoint, options)
    return text.name if text else own_writing.NAME


def widths(checkpoint: Checkpoint) -> list[int]:
    """Of the rows of all products."""
    return sorted({checkpoint.config.n_embd, checkpoint.config.inner_size})


def say(step: int, what: str) -> None:
    """Announce a step."""
    print(f"[{step}/6] {what}", flush=True)


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
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ENDS:
        if signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(getattr(signal, name), interrupt)
    sys.exit(run())
