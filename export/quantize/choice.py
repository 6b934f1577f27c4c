"""Choose how one product is equalized: try a few candidates, with the kernel itself, on inputs of the calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from export.quantize import equalization, trial
from export.quantize.equalization import Equalization
from export.quantize.inputs import Inputs
from export.quantize.kernels import make_kernel
from export.quantize.precision import Floats, Linear

Errors = dict[str, float]
"""Kernel -> error of one product, see `trial.relative_error`."""
MeasureError = Callable[[str, Equalization], float]
"""The error of one product with a kernel, after an equalization."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to equalize the input of a product.

    strength: see `equalization.scales`; None scales nothing. is_peak: measure the size of channels and weights by their
    largest absolute value, not by their root mean square. shifts: subtract the mean of each channel.
    """

    name: str
    strength: float | None = None
    is_peak: bool = False
    shifts: bool = True


CANDIDATES = (
    Candidate("none", shifts=False),
    Candidate("shift"),
    Candidate("scale 0.25", 0.25),
    Candidate("scale 0.5", 0.5),
    Candidate("scale 0.75", 0.75),
    Candidate("peak 0.5", 0.5, is_peak=True),
    Candidate("peak 0.75", 0.75, is_peak=True),
)
# The default candidate, and a factor: another candidate is chosen only if its error is at most this factor times the
# error of the default, since errors of a sample are noisy. int4 prefers no scale, since its blocks have scales of
# their own. Its factor is smaller because the trial overestimates errors, which GPTQ compensates for afterwards.
PREFERRED = {"int8": ("scale 0.5", 0.9), "int4": ("shift", 0.6)}


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one product is equalized. errors: of the usual kernel, then of more exact ones, after the equalization."""

    candidate: str
    equalization: Equalization
    errors: Errors


def choose_product(
    name: str,
    weight: Floats,
    inputs: Inputs,
    kernels: Sequence[str],
    *,
    activation_function: str = "gelu_new",
    floor: float | None = None,
    is_post_norm: bool = False,
) -> Choice:
    """Choose the equalization of a product of a layer, such as `h.0.attn.c_attn`.

    weight: [n_in, n_out]. kernels: the usual kernel, which the choice is made for; then others whose errors are
    recorded. floor: a lower bound of the inputs, see `Linear`.
    """
    part = np.ascontiguousarray(weight[:, trial.some_columns(weight.shape[1])])
    expected = inputs.sample.astype(np.float64) @ part

    def error(kernel: str, equalized: Equalization) -> float:
        scaled = np.ascontiguousarray(part * equalized.scale[:, None])
        linear = Linear(scaled, np.zeros(part.shape[1], np.float32), floor)
        unshifted = expected - equalized.shift.astype(np.float64) @ part
        ranges = {trial.PRODUCT: equalized.range(inputs.lowest, inputs.highest)}
        precision = make_kernel(kernel, ranges=ranges)
        output = trial.run_product(precision, equalized.apply(inputs.sample), linear)
        return trial.relative_error(output, unshifted, inputs.weights)

    can_shift = equalization.can_shift(name, is_post_norm=is_post_norm)
    can_scale = equalization.can_scale(name, activation_function, is_post_norm=is_post_norm)
    candidates = dict(_candidates(inputs, weight, can_shift=can_shift, can_scale=can_scale))
    return _choose(candidates, kernels, error)


def choose_output(matrix: Floats, inputs: Inputs, kernels: Sequence[str]) -> Choice:
    """Choose the equalization of the output layer, whose matrix is [n_vocab, n_embd]."""
    part = np.ascontiguousarray(matrix[trial.some_columns(len(matrix))])
    expected = inputs.sample.astype(np.float64) @ part.T

    def error(kernel: str, equalized: Equalization) -> float:
        scaled = np.ascontiguousarray(part * equalized.scale)
        output = trial.run_output(make_kernel(kernel), equalized.apply(inputs.sample), scaled)
        return trial.relative_error(output, expected, inputs.weights)

    return _choose(dict(_candidates(inputs, matrix.T, can_shift=False, can_scale=True)), kernels, error)


def _choose(candidates: dict[str, Equalization], kernels: Sequence[str], error: MeasureError) -> Choice:
    usual, *better = kernels
    errors = {name: error(usual, candidate) for name, candidate in candidates.items()}
    best = min(errors, key=errors.__getitem__)
    preferred, factor = PREFERRED["int4" if usual.startswith("int4") else "int8"]
    if preferred in errors and errors[best] > factor * errors[preferred]:
        best = preferred
    chosen = candidates[best]
    return Choice(best, chosen, {usual: errors[best]} | {kernel: error(kernel, chosen) for kernel in better})


def _candidates(
    inputs: Inputs, weight: Floats, *, can_shift: bool, can_scale: bool
) -> Iterator[tuple[str, Equalization]]:
    """The equalizations that are possible for this product, by the name of the candidate; weight: [n_in, n_out]."""
    unchanged = equalization.identity(len(weight))
    for candidate in CANDIDATES:
        if (candidate.strength and not can_scale) or (candidate.name == "shift" and not can_shift):
            continue
        shift = inputs.mean if can_shift and candidate.shifts else unchanged.shift
        scale = unchanged.scale
        if candidate.strength:
            scale = equalization.scales(*_sizes(candidate, inputs, weight, shift), candidate.strength)
        yield candidate.name, Equalization(scale, shift)


def _sizes(candidate: Candidate, inputs: Inputs, weight: Floats, shift: Floats) -> tuple[Floats, Floats]:
    """The size of each channel of the shifted input, and of the weights that read it, [n_in] each."""
    if candidate.is_peak:
        return equalization.largest(inputs.sample - shift, 0), equalization.largest(weight, 1)
    sizes = inputs.spread if shift.any() else inputs.size
    return sizes, equalization.root_mean_square(weight, 1)
