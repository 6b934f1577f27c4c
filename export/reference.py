"""The reference: optimum's own fp32 ONNX export with past-key-values, made from the same checkpoint."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

MISSING = (
    "the reference needs optimum, which is not installed: pip install -e '.[export]', "
    "or build with --no-reference (the model is then verified against this project's own fp32 graph)"
)
FAILED = (
    "optimum could not export this checkpoint ({reason}); "
    "--no-reference does without it (the model is then verified against this project's own fp32 graph)"
)


def check_installed() -> None:
    """Raise ModuleNotFoundError, saying which extra to install, unless optimum's exporter can be imported."""
    try:
        found = all(map(importlib.util.find_spec, ("torch", "transformers", "optimum.exporters.onnx")))
    except ModuleNotFoundError:  # of a package on the way to the last
        found = False
    if not found:
        raise ModuleNotFoundError(MISSING)


def export_reference(checkpoint: Path, folder: Path) -> None:
    """Export with optimum (`text-generation-with-past`); `folder` becomes a model folder that the runtime opens.

    Raises ValueError, saying how to do without, for whatever fails inside optimum.
    """
    try:
        _export(checkpoint, folder)
    except Exception as error:  # torch, transformers, optimum and onnx raise anything
        if isinstance(error, OSError) and error.errno is not None:  # this machine's own, like a full disk
            raise
        raise ValueError(FAILED.format(reason=_last_line(error))) from error


def _export(checkpoint: Path, folder: Path) -> None:
    from optimum.exporters.onnx import main_export  # imports torch: only here

    for library in ("optimum", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's tracer warns about every branch on a shape
        main_export(
            str(checkpoint),
            output=str(folder),
            task="text-generation-with-past",
            dtype="fp32",
            do_validation=False,  # the fused graph is compared with this one: a wrong export does not pass that
        )


def _last_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[-1]
