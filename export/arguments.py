"""The build's command line, checked."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from export import quality
from export.checkpoint import RANDOM, model_name
from export.precision import BLOCK_SIZES, DEFAULT_BLOCK_SIZE
from export.random_checkpoint import SIZES

_DESCRIPTION = """\
Build a model folder from a GPT-2 checkpoint: export, quantize, verify, publish.

  python export/build.py                                OpenAI's gpt2, downloaded once
  python export/build.py models/demo                    the checkpoint that comes with the repository
  python export/build.py random:gpt2-xl --no-reference  noise of that size, to test a device with
"""


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """What to build, from what, and where; the names are those of the command line."""

    checkpoint: str
    output: Path
    precision: str
    block_size: int | None  # None at fp32
    no_reference: bool
    keep_reference: Path | None
    verify: str
    max_loss: float
    tokenizer: Path | None
    force: bool
    command: str  # as the user typed it, for the card

    @property
    def needs_reference(self) -> bool:
        """Whether anything is done with a reference."""
        return self.verify != "none" or self.keep_reference is not None

    @property
    def reference_text(self) -> str:
        """What the model is compared with."""
        if not self.needs_reference:
            return "none"
        return "the fused fp32 graph" if self.no_reference else "optimum's fp32 export"

    @property
    def precision_text(self) -> str:
        """The precision in words."""
        return f"{self.precision} in blocks of {self.block_size}" if self.block_size else self.precision


def parse(arguments: list[str] | None = None) -> BuildOptions:
    """Parse and check; exits with code 2 for wrong usage, with the usage and the reason."""
    parser = argument_parser()
    given = parser.parse_args(arguments)
    _check(parser, given)
    if given.precision == "int8" and given.block_size is None:
        given.block_size = DEFAULT_BLOCK_SIZE
    if given.max_loss is None:
        given.max_loss = quality.MAX_LOSS[given.precision]
    output = given.output or Path("models") / f"{model_name(given.checkpoint)}-{given.precision}"
    given.output = output.absolute()
    given.keep_reference = given.keep_reference and given.keep_reference.absolute()
    typed = sys.argv[1:] if arguments is None else arguments
    return BuildOptions(**vars(given), command=shlex.join(["python", "export/build.py", *typed]))


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    conflicts = {
        "--block-size goes with --precision int8": given.precision == "fp32" and given.block_size is not None,
        "--keep-reference keeps optimum's export, which --no-reference does not make": given.no_reference
        and given.keep_reference,
        "--max-loss bounds the verification, which --verify none leaves out": given.verify == "none"
        and given.max_loss is not None,
        "--max-loss is per cent and at least 0": given.max_loss is not None and not given.max_loss >= 0,
        f"--tokenizer goes with {RANDOM}SIZE: other checkpoints have their own": given.tokenizer
        and not given.checkpoint.startswith(RANDOM),
    }
    for message, is_so in conflicts.items():
        if is_so:
            parser.error(message)


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="export/build.py", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sizes = ", ".join(f"{RANDOM}{size}" for size in SIZES)
    about = f"a Hugging Face GPT-2 folder; a hub id such as gpt2 or owner/name (default: gpt2); or noise: {sizes}"
    add("checkpoint", nargs="?", default="gpt2", metavar="CHECKPOINT", help=about)
    add("--output", type=Path, metavar="DIR", help="where the model goes (default: models/<name>-<precision>)")
    add("--precision", choices=sorted(quality.MAX_LOSS), default="int8", help="of the weights (default: int8)")
    about = f"weights that share a scale (default: {DEFAULT_BLOCK_SIZE}); at 32 and 64 no row depends on its neighbours"
    add("--block-size", type=int, choices=BLOCK_SIZES, help=about)
    about = "do without optimum and torch: verify against the project's own fp32 graph"
    add("--no-reference", action="store_true", help=about)
    add("--keep-reference", type=Path, metavar="DIR", help="keep optimum's fp32 export in this new folder")
    about = "measure the loss of quality, or leave it out (default: quality)"
    add("--verify", choices=["quality", "none"], default="quality", help=about)
    bounds = ", ".join(f"{precision} {bound}" for precision, bound in quality.MAX_LOSS.items())
    about = f"loss of perplexity that refuses the model (default: {bounds})"
    add("--max-loss", type=float, metavar="PERCENT", help=about)
    about = f"with {RANDOM}SIZE, the folder whose tokenizer.json to take (default: one grown from the demo's)"
    add("--tokenizer", type=Path, metavar="FOLDER", help=about)
    add("--force", action="store_true", help="replace a model folder that is there")
    return parser
