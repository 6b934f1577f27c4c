"""The options of a build: the command line, its checks, and what follows from the values."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.checkpoint.checkpoint import model_name
from export.checkpoint.random_weights import SIZES
from export.checkpoint.sources import RANDOM
from export.folder import layout
from export.quantize import kernels
from export.quantize.precision import BLOCK_SIZES, DEFAULT_BLOCK_SIZES, INT4_BLOCK_SIZES
from export.verify import quality
from export.verify.labels import LABELS_PER_LOSS
from runtime.cli.arguments import Parser

_DESCRIPTION = """\
Build a model folder from a GPT-2 checkpoint: export, quantize, verify, publish.

  python export/build.py                                OpenAI's gpt2, downloaded once
  python export/build.py models/demo                    the checkpoint that comes with the repository
  python export/build.py random:gpt2-xl --no-reference  noise of that size, to test a device with
"""
STATIC = "static"
"""The value of --activations for one scale for all rows."""
LEAST_TOKENS = 2000
"""How many tokens the user's text must have at least: the measured quality on a shorter one varies too much."""
_RANDOM_SIZES = ", ".join(f"{RANDOM}{size}" for size in SIZES)


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """The options of the command line, under the same names.

    kernel: block, dense, or auto, which is dense with blocks for products that lose too much. block_size: None for
    weights that are not in blocks. activations: dynamic, with a scale for each row, or static, with one for all rows.
    max_loss: in per cent of perplexity. max_kl: mean KL divergence in nats. command: as the user typed it, for the
    model card. is_classifier: of the checkpoint, known once it is open.
    """

    checkpoint: str
    revision: str | None
    output: Path
    precision: str
    kernel: str
    block_size: int | None
    activations: str
    no_calibration: bool
    calibration_text: Path | None
    no_reference: bool
    keep_reference: Path | None
    verify: str
    eval_text: Path | None
    max_loss: float
    max_kl: float
    tokenizer: Path | None
    adapter: list[Path]
    allow_pickle: bool
    layout: str
    force: bool
    command: str
    is_classifier: bool = False

    @property
    def is_random(self) -> bool:
        """Whether the weights are random."""
        return self.checkpoint.startswith(RANDOM)

    @property
    def needs_reference(self) -> bool:
        """Whether the build makes a reference model: to verify against, or to keep."""
        return self.verify != "none" or self.keep_reference is not None

    @property
    def reference_text(self) -> str:
        """What the model is compared with, in words."""
        if not self.needs_reference:
            return "none"
        return "the fused fp32 graph" if self.no_reference else "optimum's fp32 export"

    @property
    def least_tokens(self) -> int:
        """How many tokens the text to verify on must have at least."""
        return LEAST_TOKENS if self.eval_text else 2

    @property
    def bounds(self) -> quality.Bounds:
        """How much worse than the reference the model may be."""
        return quality.Bounds(self.max_kl, self.max_loss)

    @property
    def usual_kernel(self) -> str:
        """The kernel of every product, except those that lose too much with it; see `export.quantize.kernels`."""
        if self.precision == "fp32":
            return kernels.FP32
        if self.block_size is None:
            return kernels.STATIC if self.activations == STATIC else kernels.DENSE
        return f"{'int4' if self.precision == 'int4' else 'block'} {self.block_size}"

    @property
    def kernel_kind(self) -> str | None:
        """The kind of the usual kernel, dense or block; None for fp32."""
        if self.precision == "fp32":
            return None
        return "dense" if self.block_size is None else "block"

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise ValueError unless the block size divides the row length of every product. widths: these lengths."""
        fitting = [size for size in BLOCK_SIZES if all(width % size == 0 for width in widths)]
        if self.block_size and self.block_size not in fitting:
            cure = f"--block-size {' or '.join(map(str, fitting))}" if fitting else "--kernel dense or --precision fp32"
            raise ValueError(f"blocks of {self.block_size} do not divide the widths {list(widths)}; {cure} does")

    @property
    def calibrates(self) -> bool:
        """Whether the build measures statistics of products' inputs and equalizes them; never for random weights."""
        return self.precision != "fp32" and not (self.no_calibration or self.is_random)

    @property
    def calibration_text_name(self) -> str:
        """The name of the text that the model is calibrated on, for the card and the progress."""
        if not self.calibrates:
            return "none"
        if self.calibration_text:
            return self.calibration_text.name
        return "every other sentence of the text to verify on" if self.is_classifier else "text that the model writes"

    @property
    def has_int8_cache(self) -> bool:
        """Whether the folder gets a second graph with an int8 key-value cache, for this project's runtime."""
        return self.precision != "fp32" and not self.is_classifier and self.layout == layout.GPT2_EDGE

    @property
    def less_memory(self) -> str:
        """The options that need less memory, as the end of an error message; "" for none."""
        cures = ["--no-calibration needs less and loses more"] if self.calibrates else []
        if self.needs_reference and not self.no_reference:
            cures.append("--no-reference needs less than optimum's reference")
        if self.verify != "none":
            cures.append("--verify none needs less")
        return "".join(f"; {cure}" for cure in cures)

    @property
    def precision_text(self) -> str:
        """The precision in words."""
        if self.precision == "fp32":
            return "fp32"
        dense = "dense, static activations" if self.activations == STATIC else "dense"
        blocks = f"{self.precision} in blocks of {self.block_size}" if self.block_size else f"{self.precision}, {dense}"
        if self.is_random:
            return blocks
        return (
            f"{blocks}, calibrated on {self.calibration_text_name}" if self.calibrates else f"{blocks}, not calibrated"
        )


def parse(arguments: list[str] | None = None) -> BuildOptions:
    """Parse and check the command line. For wrong usage, prints the usage and the reason and exits with code 2."""
    parser = argument_parser()
    given = parser.parse_args(arguments)
    kind = f"{given.precision}-dense" if given.kernel == "dense" else given.precision
    kind = f"{kind}-static" if given.activations == STATIC else kind
    given.output = (given.output or Path("models") / f"{model_name(given.checkpoint)}-{kind}").resolve()
    given.keep_reference = given.keep_reference and given.keep_reference.resolve()
    for mistake in _mistakes(given):
        parser.error(mistake)
    if given.kernel is None:
        given.kernel = "auto" if given.precision == "int8" and given.block_size is None else "block"
    if given.block_size is None and given.kernel == "block":
        given.block_size = DEFAULT_BLOCK_SIZES.get(given.precision)
    default = quality.BOUNDS[given.precision]
    given.max_loss = default.loss_percent if given.max_loss is None else given.max_loss
    given.max_kl = default.mean_kl if given.max_kl is None else given.max_kl
    typed = sys.argv[1:] if arguments is None else arguments
    return BuildOptions(**vars(given), command=shlex.join(["python", "export/build.py", *typed]))


def _mistakes(given: argparse.Namespace) -> Iterator[str]:
    """What is wrong with an option by itself, or with two options together."""
    is_random = given.checkpoint.startswith(RANDOM)
    if is_random and given.checkpoint.removeprefix(RANDOM) not in SIZES:
        yield f"{given.checkpoint} is not known; there are {_RANDOM_SIZES}"
    if given.precision == "fp32" and given.block_size is not None:
        yield "--block-size goes with --precision int8 or int4"
    if given.precision == "int4" and given.block_size not in (None, *INT4_BLOCK_SIZES):
        yield f"--block-size is {' or '.join(map(str, INT4_BLOCK_SIZES))} with --precision int4"
    if given.kernel == "dense" and (given.precision != "int8" or given.block_size is not None):
        yield "--kernel dense goes with --precision int8 and without --block-size: it has a scale a column"
    if given.activations == STATIC:
        yield from _mistakes_of_static(given, is_random)
    if given.no_calibration and given.precision == "fp32":
        yield "--no-calibration goes with --precision int8 or int4: fp32 is not calibrated"
    if given.calibration_text and (given.no_calibration or given.precision == "fp32" or is_random):
        yield "--calibration-text goes with int8 or int4 of a checkpoint that is no noise, and without --no-calibration"
    if given.eval_text and given.verify == "none":
        yield "--eval-text is the text of the verification, which --verify none leaves out"
    if given.keep_reference and given.no_reference:
        yield "--keep-reference keeps optimum's export, which --no-reference does not make"
    if given.keep_reference and _overlap(given.keep_reference, given.output):
        yield "--keep-reference and --output name the same place, or one within the other"
    for option, bound in (("--max-loss", given.max_loss), ("--max-kl", given.max_kl)):
        if bound is not None:
            yield from _mistakes_of_bound(option, bound, given.verify, is_random)
    if given.adapter and is_random:
        yield f"--adapter goes with the model it was trained on, and {given.checkpoint} is noise"
    if given.allow_pickle and is_random:
        yield f"--allow-pickle reads weights in a pickle, and {given.checkpoint} has none"
    if given.revision is not None and (is_random or Path(given.checkpoint).exists()):
        yield f"--revision goes with a hub id, and {given.checkpoint} is none"


def _mistakes_of_static(given: argparse.Namespace, is_random: bool) -> Iterator[str]:
    is_dense = given.precision == "int8" and given.block_size is None and given.kernel != "block"
    if not is_dense:
        yield f"--activations {STATIC} goes with --precision int8 without blocks: the others have a scale for each row"
    if given.no_calibration or is_random:
        yield f"--activations {STATIC} takes ranges from calibration, which --no-calibration and {RANDOM}SIZE leave out"


def _mistakes_of_bound(option: str, bound: float, verify: str, is_random: bool) -> Iterator[str]:
    # Not `bound < 0`, which is False for NaN.
    if not bound >= 0:
        yield f"{option} is at least 0"
    if verify == "none":
        yield f"{option} bounds the verification, which --verify none leaves out"
    if is_random:
        yield f"{option} bounds a loss that random weights do not have"


def _overlap(first: Path, second: Path) -> bool:
    return first.is_relative_to(second) or second.is_relative_to(first)


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = Parser(prog="export/build.py", description=_DESCRIPTION)
    _add_source(parser)
    _add_weights(parser)
    _add_verification(parser)
    about = f"names of the files: this project's, or those that transformers.js expects (default: {layout.GPT2_EDGE})"
    parser.add_argument("--layout", choices=layout.LAYOUTS, default=layout.GPT2_EDGE, help=about)
    parser.add_argument("--force", action="store_true", help="replace a model folder that is there")
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    """What to build from, and where to."""
    add = parser.add_argument
    about = (
        "a Hugging Face GPT-2 folder; a hub id such as gpt2 or owner/name (default: gpt2); a file of nanoGPT "
        f"(ckpt.pt), llm.c (.bin) or llama.cpp (.gguf); or noise: {_RANDOM_SIZES}"
    )
    add("checkpoint", nargs="?", default="gpt2", metavar="CHECKPOINT", help=about)
    add("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: its main branch)")
    add("--output", type=Path, metavar="DIR", help="where the model goes (default: models/<name>-<precision>)")
    about = f"the folder whose tokenizer to take (default: the checkpoint's own; of {RANDOM}SIZE one like the demo's)"
    add("--tokenizer", type=Path, metavar="FOLDER", help=about)
    about = "a PEFT LoRA adapter to merge into the checkpoint; may be given several times"
    add("--adapter", type=Path, action="append", default=[], metavar="FOLDER", help=about)
    about = "read weights that are only in a pickle (pytorch_model.bin, nanoGPT's ckpt.pt), tensors alone; needs torch"
    add("--allow-pickle", action="store_true", help=about)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    """How the weights are stored."""
    add = parser.add_argument
    add("--precision", choices=sorted(quality.BOUNDS), default="int8", help="of the weights (default: int8)")
    defaults = ", ".join(f"{size} at {precision}" for precision, size in DEFAULT_BLOCK_SIZES.items())
    about = f"weights that share a scale: small blocks are more exact, large ones faster (default: {defaults})"
    add("--block-size", type=int, choices=BLOCK_SIZES, help=about)
    about = "of int8: one scale a column, or one a block (default: dense, with blocks for products that lose too much)"
    add("--kernel", choices=["block", "dense"], help=about)
    about = (
        "of int8 without blocks: a scale for each row, computed at every token, or one for all rows, measured by "
        "calibration, which decodes faster and loses twice as much (default: dynamic)"
    )
    add("--activations", choices=["dynamic", STATIC], default="dynamic", help=about)
    about = "round without reading a text: quicker, but a model with outlier channels, as GPT-2 is, loses far more"
    add("--no-calibration", action="store_true", help=about)
    about = "your own text to calibrate on, UTF-8, at least 2,000 tokens (default: one that the model writes)"
    add("--calibration-text", type=Path, metavar="FILE", help=about)


def _add_verification(parser: argparse.ArgumentParser) -> None:
    """What the model is compared with, and how much it may lose."""
    add = parser.add_argument
    about = "do without optimum and torch: verify against the project's own fp32 graph"
    add("--no-reference", action="store_true", help=about)
    add("--keep-reference", type=Path, metavar="DIR", help="keep optimum's fp32 export in this new folder")
    about = "measure the loss of quality, or leave it out (default: quality)"
    add("--verify", choices=["quality", "none"], default="quality", help=about)
    about = "your own text to verify on, UTF-8, at least 2,000 tokens (default: one that comes with the build)"
    add("--eval-text", type=Path, metavar="FILE", help=about)
    bounds = ", ".join(f"{precision} {bound.loss_percent}" for precision, bound in quality.BOUNDS.items())
    about = (
        f"loss of perplexity from which products get better kernels (default: {bounds}); of a classifier "
        f"{LABELS_PER_LOSS} times as many labels may differ"
    )
    add("--max-loss", type=float, metavar="PERCENT", help=about)
    bounds = ", ".join(f"{precision} {bound.mean_kl}" for precision, bound in quality.BOUNDS.items())
    about = f"mean KL divergence, in nats, from which products get better kernels (default: {bounds})"
    add("--max-kl", type=float, metavar="NATS", help=about)
