"""How one product is equalized: a few candidates, tried with the kernel itself on inputs of the calibration text."""

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
Error = Callable[[str, Equalization], float]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to equalize the input of a product."""

    name: str  # in `Calibration.chosen`
    strength: float | None = None  # of the scale; None for no scale
    is_peak: bool = False  # sizes of channels and weights are largest values instead of root mean squares
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
# The candidate that is taken unless the error of another one is at most this part of its own: errors of a sample are
# noisy. int4 prefers no scales, since its blocks have scales of their own; and its trial overestimates the error, since
# GPTQ compensates for it afterwards.
PREFERRED = {"int8": ("scale 0.5", 0.9), "int4": ("shift", 0.6)}


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one product is equalized, and its errors."""

    candidate: str
    equalization: Equalization
    errors: Errors  # of the kernel, then of better ones, as equalized


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
    """Choose for a product of a layer, such as `h.0.attn.c_attn`.

    weight: [n_in, n_out]. kernels: the one to choose for, then others whose error is wanted. floor: what the inputs
    never go below, see `Linear`.
    """
    part = np.ascontiguousarray(weight[:, trial.some_columns(weight.shape[1])])
    expected = inputs.sample.astype(np.float64) @ part

    def error(kernel: str, equalized: Equalization) -> float:
        scaled = np.ascontiguousarray(part * equalized.scale[:, None])
        linear = Linear(scaled, np.zeros(part.shape[1], np.float32), floor)
        unshifted = expected - equalized.shift.astype(np.float64) @ part
        found = trial.run_product(make_kernel(kernel), equalized.apply(inputs.sample), linear)
        return trial.relative_error(found, unshifted, inputs.weights)

    can_shift = equalization.can_shift(name, is_post_norm=is_post_norm)
    can_scale = equalization.can_scale(name, activation_function, is_post_norm=is_post_norm)
    candidates = dict(_candidates(inputs, weight, can_shift=can_shift, can_scale=can_scale))
    return _choose(candidates, kernels, error)


def choose_output(matrix: Floats, inputs: Inputs, kernels: Sequence[str]) -> Choice:
    """The same for the output layer, of a matrix [n_vocab, n_embd]."""
    part = np.ascontiguousarray(matrix[trial.some_columns(len(matrix))])
    expected = inputs.sample.astype(np.float64) @ part.T

    def error(kernel: str, equalized: Equalization) -> float:
        scaled = np.ascontiguousarray(part * equalized.scale)
        found = trial.run_output(make_kernel(kernel), equalized.apply(inputs.sample), scaled)
        return trial.relative_error(found, expected, inputs.weights)

    return _choose(dict(_candidates(inputs, matrix.T, can_shift=False, can_scale=True)), kernels, error)


def _choose(candidates: dict[str, Equalization], kernels: Sequence[str], error: Error) -> Choice:
    kernel, *better = kernels
    errors = {name: error(kernel, found) for name, found in candidates.items()}
    best = min(errors, key=errors.__getitem__)
    preferred, part = PREFERRED["int4" if kernel.startswith("int4") else "int8"]
    if preferred in errors and errors[best] > part * errors[preferred]:
        best = preferred
    return Choice(
        best, candidates[best], {kernel: errors[best]} | {step: error(step, candidates[best]) for step in better}
    )


def _candidates(
    inputs: Inputs, weight: Floats, *, can_shift: bool, can_scale: bool
) -> Iterator[tuple[str, Equalization]]:
    """What may be done to the input of this product; weight: [n_in, n_out]."""
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
    """Of the channels of the shifted input, and of the weights that read them, [n_in] each."""
    if candidate.is_peak:
        return equalization.largest(inputs.sample - shift, 0), equalization.largest(weight, 1)
    sizes = inputs.spread if shift.any() else inputs.size
    return sizes, equalization.root_mean_square(weight, 1)
