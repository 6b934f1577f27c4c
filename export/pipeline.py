"""The build, step by step: checkpoint, reference, calibration, model, verification, publication."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export import conversion, needs
from export.arguments import BuildOptions
from export.checkpoint import adapter, pickle_file, provenance, sources, tokenizer
from export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from export.checkpoint.config import Config
from export.checkpoint.random_weights import SIZES
from export.checkpoint.sources import RANDOM
from export.folder import card, folder, layout
from export.folder.genai_config import NAME as GENAI_CONFIG
from export.folder.genai_config import genai_config
from export.graph import reference
from export.json_file import write_json
from export.quantize.calibration import Calibration
from export.verify import golden, labels, own_writing, quality
from export.verify import upgrades as kernel_upgrades
from runtime.graph.architecture import GPT
from runtime.graph.gpt2 import GRAPH_FILES
from runtime.model.integrity import GOLDEN, QUALITY

VERSIONED = ("onnx", "onnxruntime", "numpy", "tokenizers")
"""Packages whose versions the measured quality may depend on."""
EVALUATION_TEXT = Path(__file__).with_name("evaluation.txt")
"""The English text that comes with the build."""
REPOSITORY = Path(__file__).resolve().parents[1]


def build(options: BuildOptions, before_publication: Callable[[], None] = lambda: None) -> None:
    """Build one model folder. Any error is raised, and leaves an earlier output as it was."""
    check_before_work(options)
    with workspaces(options) as (work, reference_work):
        announce(1, f"checkpoint: {options.checkpoint}")
        checkpoint = open_within_limits(options, work)
        options = dataclasses.replace(options, is_classifier=checkpoint.config.head is not None)
        options = choose_reference(checkpoint, options)
        options.check_widths(product_widths(checkpoint))
        check_texts(checkpoint, options)

        announce(2, f"reference: {options.reference_text}")
        make_reference(checkpoint, options, reference_work / "reference")

        announce(3, f"calibration: {options.calibration_text_name}")
        calibration = calibrate(checkpoint, options, work)

        # Steps 4 and 5, model and verification, repeat with more exact kernels while the model loses too much.
        built = make_and_verify(checkpoint, options, calibration, reference_work / "reference", work)

        announce(6, f"publication: {options.output}")
        describe(checkpoint, options, built, work / "model")
        before_publication()
        if options.keep_reference:
            folder.publish(reference_work / "reference", options.keep_reference, reference_work)
        folder.publish(work / "model", options.output, work)
    print(f"built {options.output}")


@contextlib.contextmanager
def workspaces(options: BuildOptions) -> Iterator[tuple[Path, Path]]:
    """Temporary folders for the model and the reference, beside their outputs so that publishing is a rename."""
    with folder.workspace(options.output, force=options.force) as work:
        if options.keep_reference is None:
            yield work, work
        else:
            with folder.workspace(options.keep_reference) as reference_work:
                yield work, reference_work


def check_before_work(options: BuildOptions) -> None:
    """Raise errors that would otherwise come after minutes of work: an existing output, a missing package or file."""
    folder.check_output(options.output, force=options.force)
    if options.keep_reference and options.keep_reference.exists():
        raise FileExistsError(f"{options.keep_reference} is there already; --keep-reference names a new folder")
    for option, path in (("--eval-text", options.eval_text), ("--calibration-text", options.calibration_text)):
        if path and not path.is_file():
            raise FileNotFoundError(f"no text at {path}; {option} names a file")
    if options.allow_pickle:
        pickle_file.check_installed()
    if Path(options.checkpoint).exists():
        sources.check(Path(options.checkpoint), allow_pickle=options.allow_pickle)
    for folder_of_adapter in options.adapter:
        adapter.read_settings(folder_of_adapter)
    if options.needs_reference and not options.no_reference:
        reference.check_installed()


def open_within_limits(options: BuildOptions, work: Path) -> Checkpoint:
    """Open the checkpoint, and print how much disk and memory the build needs.

    Raises OSError for too little disk, ValueError for too little memory.
    """
    # Random weights are checked before they are written; other checkpoints have to be read first.
    size = SIZES[options.checkpoint.removeprefix(RANDOM)] if options.is_random else None
    if size:
        check_needs(size, options, options.eval_text or EVALUATION_TEXT)
    named: dict[str, Any] = {name: getattr(options, name) for name in ("tokenizer", "revision", "allow_pickle")}
    checkpoint = open_checkpoint(options.checkpoint, work, adapters=options.adapter, **named)
    if not size:
        check_needs(checkpoint.config, options, evaluation_text(checkpoint, options))
    return checkpoint


def choose_reference(checkpoint: Checkpoint, options: BuildOptions) -> BuildOptions:
    """The options with `no_reference` for a GPT, which optimum does not export, and for a classifier.

    Raises ValueError where optimum's export was to be kept.
    """
    if options.no_reference or (checkpoint.config.model_type != GPT and not options.is_classifier):
        return options
    why = f"optimum exports no {GPT} model" if checkpoint.config.model_type == GPT else "the model is a classifier"
    if options.keep_reference:
        raise ValueError(
            f"--keep-reference keeps optimum's export, and {why}; leave it out, and the model is verified against this "
            "project's own fp32 graph"
        )
    print(f"      {why}: the reference is this project's own fp32 graph", flush=True)
    return dataclasses.replace(options, no_reference=True)


def check_texts(checkpoint: Checkpoint, options: BuildOptions) -> None:
    """Raise ValueError for a text that is too short, not UTF-8, or that the model's vocabulary does not cover."""
    if options.is_classifier and evaluation_text(checkpoint, options) is None and needs_text(options):
        raise ValueError(
            "the classifier's vocabulary does not cover the text that comes with the build, and a classifier writes "
            "none of its own; --eval-text FILE names a text of what it labels"
        )
    if options.calibration_text:
        conversion.read_calibration_text(checkpoint, options.calibration_text)
    text = None if options.verify == "none" else evaluation_text(checkpoint, options)
    if text:
        encode = functools.partial(tokenizer.encode, checkpoint.tokenizer_folder)
        content, _ = quality.read_text(text, encode, options.least_tokens)
        own_writing.check_written(tokenizer.read(checkpoint.tokenizer_folder), content, text, "--eval-text")


def needs_text(options: BuildOptions) -> bool:
    """Whether a classifier's build reads a text: to verify on, or to calibrate on."""
    return options.verify != "none" or (options.calibrates and not options.calibration_text)


def check_needs(config: Config, options: BuildOptions, text: Path | None) -> None:
    """Print on one line how much disk and memory the build needs and how much is free; raise if it is not enough."""
    n_bytes = text.stat().st_size if text else own_writing.N_TOKENS * needs.BYTES_PER_TOKEN
    needed = needs.estimate(config, options, n_bytes)
    print(f"      {needed.check(options.output, options.less_memory)}", flush=True)


def make_reference(checkpoint: Checkpoint, options: BuildOptions, target: Path) -> None:
    """Export with optimum, or with --no-reference write this project's fused graph in fp32."""
    if not options.needs_reference:
        return
    if options.no_reference:
        conversion.make_fp32(checkpoint, target)
    else:
        reference.export_reference(checkpoint.folder, target)
        folder.write_tokenizer_and_config(checkpoint, target)


Measured = quality.Quality | labels.LabelQuality


def calibrate(checkpoint: Checkpoint, options: BuildOptions, work: Path) -> Calibration | None:
    """Choose how each product is equalized; None for a build without calibration."""
    if not options.calibrates:
        return None
    text = evaluation_text(checkpoint, options) if options.is_classifier else None
    return conversion.calibrate(checkpoint, options, work, text)


@dataclasses.dataclass(frozen=True)
class Built:
    """The result of making a model.

    measured: None if it was not verified. calibration: None if it was not calibrated. upgraded: the products with a
    more exact kernel than usual.
    """

    measured: Measured | None
    calibration: Calibration | None
    upgraded: conversion.Kernels


def make_and_verify(
    checkpoint: Checkpoint, options: BuildOptions, calibration: Calibration | None, reference: Path, work: Path
) -> Built:
    """Make the model; while it loses too much, give the products with the largest errors a more exact kernel.

    Raises ValueError for a model whose logits are NaN or infinite, and if no product has a more exact kernel left.
    """
    upgraded: dict[str, str] = {}
    verifier = None
    text = "none" if options.verify == "none" else text_name(checkpoint, options)
    while True:
        announce(4, f"model: the fused graph, {options.precision_text}{upgrades_text(upgraded)}")
        conversion.make_model(checkpoint, options, work, calibration, upgraded)
        if options.has_int8_cache:
            conversion.add_int8_cache(checkpoint, calibration, work / "model")
        announce(5, f"verification: {text}")
        if options.verify == "none":
            return Built(None, calibration, upgraded)
        verifier = verifier or open_verifier(checkpoint, options, reference, work)
        measured = measure(checkpoint, options, verifier, work / "model")
        print(card.quality_text(checkpoint, measured), flush=True)
        if checkpoint.is_random:
            return Built(measured, calibration, upgraded)
        measured.check_numbers()
        if measured.excess(options.bounds) <= 1:
            return Built(measured, calibration, upgraded)
        upgraded = better_kernels(checkpoint, options, calibration, upgraded, measured)
        shutil.rmtree(work / "model")


def measure(
    checkpoint: Checkpoint, options: BuildOptions, verifier: quality.Verifier | labels.LabelVerifier, model: Path
) -> Measured:
    """Measure the quality with the int8 cache, or without where it loses too much; its graph is then deleted."""
    measured = verifier.measure(model)
    int8_cache = model / GRAPH_FILES["int8"]
    if checkpoint.is_random or measured.excess(options.bounds) <= 1:
        return measured
    if not isinstance(verifier, quality.Verifier) or not int8_cache.exists():
        return measured
    with_fp32_cache = verifier.measure(model, cache="fp32")
    if with_fp32_cache.excess(options.bounds) <= 1:
        print(f"      the int8 cache loses too much, and is left out: {measured.summary(options.bounds)}", flush=True)
        int8_cache.unlink()
    return with_fp32_cache


def open_verifier(
    checkpoint: Checkpoint, options: BuildOptions, reference: Path, work: Path
) -> quality.Verifier | labels.LabelVerifier:
    """Run the reference over the evaluation text."""
    text = quality.Text(evaluation_text(checkpoint, options), text_name(checkpoint, options))
    if options.is_classifier:
        encode = functools.partial(tokenizer.encode, checkpoint.tokenizer_folder)
        is_half = options.calibrates and not options.calibration_text
        return labels.LabelVerifier(reference, options.reference_text, text, encode, is_half=is_half)
    return quality.Verifier(reference, options.reference_text, text, work, at_least=options.least_tokens)


def better_kernels(
    checkpoint: Checkpoint,
    options: BuildOptions,
    calibration: Calibration | None,
    upgraded: dict[str, str],
    measured: Measured,
) -> dict[str, str]:
    """The kernels for the next attempt. Raises ValueError where no product has a more exact one."""
    print(f"      too much is lost: {measured.summary(options.bounds)}", flush=True)
    if calibration is not None:
        kernels = kernel_upgrades.upgrade_worst(calibration, upgraded, measured.excess(options.bounds))
    else:
        usual = conversion.usual_kernels(checkpoint.config, options)
        kernels = kernel_upgrades.upgrade_all(usual, upgraded, product_widths(checkpoint))
    if kernels == upgraded:
        raise ValueError(
            f"the model loses too much with the most exact kernels: {measured.summary(options.bounds)}; not published. "
            "Its weights may be damaged; --max-kl NATS and --max-loss PERCENT allow more"
        )
    return kernels


def upgrades_text(upgraded: conversion.Kernels) -> str:
    """Which products have a more exact kernel than usual, for the progress."""
    if not upgraded:
        return ""
    named = ", ".join(f"{name} {kernel}" for name, kernel in upgraded.items())
    return f", {len(upgraded)} product(s) with a better kernel: {named}"


def describe(checkpoint: Checkpoint, options: BuildOptions, built: Built, target: Path) -> None:
    """Write golden outputs, genai_config.json, quality.json, the card and the checksums.

    In the layout of transformers.js there are no golden outputs and no genai_config.json: what reads them does not open
    such a folder.
    """
    known = provenance.recognize(checkpoint.folder)
    if options.layout == layout.TRANSFORMERS_JS:
        layout.arrange(target, options.precision)
    elif options.is_classifier:
        write_json(target / GOLDEN, golden.record_labels(target, options.precision))
    else:
        outputs = golden.record(target, options.precision) | provenance.recorded_outputs(known)
        write_json(target / GOLDEN, outputs)
        write_json(target / GENAI_CONFIG, genai_config(checkpoint.config))
    measured = built.measured
    report: dict[str, Any] = {"verified": measured is not None, "random_weights": checkpoint.is_random}
    report |= {"precision": options.precision, "kernel": options.kernel_kind, "block_size": options.block_size}
    report |= {"activations": options.activations} if options.kernel_kind == "dense" else {}
    report |= {} if options.is_classifier else {"cache": "int8" if (target / GRAPH_FILES["int8"]).exists() else "fp32"}
    report |= {"calibrated": built.calibration is not None, "upgraded": upgrades(built)}
    report |= {"weights": known.description} if known else {}
    report |= {"versions": {name: importlib.metadata.version(name) for name in VERSIONED}}
    write_json(target / QUALITY, report | (dataclasses.asdict(measured) if measured else {}))
    card.write_card(
        target, checkpoint, options, measured, upgrades(built), weights=known.description if known else None
    )
    folder.write_checksums(target)


def upgrades(built: Built) -> list[dict[str, Any]]:
    """The products with a more exact kernel than usual, and the relative errors with both kernels if calibrated."""
    listed: list[dict[str, Any]] = []
    for name, kernel in built.upgraded.items():
        errors = built.calibration.errors[name] if built.calibration else {}
        usual = {"usual_error": next(iter(errors.values())), "error": errors[kernel]} if errors else {}
        listed.append({"product": name, "kernel": kernel, **usual})
    return listed


def evaluation_text(checkpoint: Checkpoint, options: BuildOptions) -> Path | None:
    """The file to verify on: the user's; else the checkpoint's `evaluation.txt`; else the build's own.

    None stands for a text that the model samples itself, where its vocabulary does not cover these files.
    """
    if options.eval_text:
        return options.eval_text
    own = checkpoint.folder / EVALUATION_TEXT.name
    text = own if own.is_file() else EVALUATION_TEXT
    return text if own_writing.can_write_file(tokenizer.read(checkpoint.tokenizer_folder), text) else None


def text_name(checkpoint: Checkpoint, options: BuildOptions) -> str:
    """The name of the text that the model is verified on, for the progress, `quality.json` and the card.

    The names `export/evaluation.txt` and `models/demo/evaluation.txt` tell the two texts of the repository apart. A
    checkpoint outside of the repository is named without the folders above it, which are private.
    """
    text = evaluation_text(checkpoint, options)
    if text is None:
        return own_writing.NAME
    if text == options.eval_text:
        return text.name
    if text == EVALUATION_TEXT:
        return f"export/{text.name}"
    if checkpoint.commit:
        return f"{checkpoint.source}/{text.name}"
    folder_of_source = Path(checkpoint.source).resolve()
    if folder_of_source.is_relative_to(REPOSITORY):
        return (folder_of_source.relative_to(REPOSITORY) / text.name).as_posix()
    return f"{checkpoint.name}/{text.name}"


def product_widths(checkpoint: Checkpoint) -> list[int]:
    """The lengths of the rows of all products, each once."""
    return sorted({checkpoint.config.n_embd, checkpoint.config.inner_size})


def announce(step: int, text: str) -> None:
    """Print the heading of a step."""
    print(f"[{step}/6] {text}", flush=True)
