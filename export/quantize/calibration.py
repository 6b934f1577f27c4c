"""Calibration: while the model reads a text, find for every product what makes it lose least when it is rounded."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from export.config import Config
from export.graph import Weights, activation_floor
from export.quantize import equalization, trial
from export.quantize.equalization import OUTPUT, Equalization, EqualizedTensors
from export.quantize.inputs import Inputs, LayerInputs
from export.quantize.int4 import RoundedFiles, quantize_int4
from export.quantize.kernels import better_kernels, make_kernel, output_kernel
from export.quantize.precision import Floats, Linear
from export.quantize.texts import Ids

Errors = dict[str, float]
"""Kernel -> error of one product, see `trial.relative_error`."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to equalize the input of a product."""

    name: str  # in quality.json
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
# What is done unless another candidate is clearly better: the errors of a sample are noisy. int4 wants less, since its
# blocks have scales of their own, and its weights compensate for one another's errors.
PREFERRED = {"int8": "scale 0.5", "int4": "scale 0.25"}
CLEARLY = 0.8


@dataclasses.dataclass
class Calibration:
    """What calibration found, by the product's name; the output layer is `OUTPUT`."""

    equalizations: dict[str, Equalization] = dataclasses.field(default_factory=dict)
    chosen: dict[str, str] = dataclasses.field(default_factory=dict)  # name of the candidate
    errors: dict[str, Errors] = dataclasses.field(default_factory=dict)  # of the kernel and of better ones
    rounded: RoundedFiles | None = None  # int4 products


def calibrate(
    config: Config, tensors: Weights, texts: Ids, kernel: str, work: Path, *, only_dense: bool = False
) -> Calibration:
    """Read the texts [n_texts, n_tokens] layer by layer, and equalize every product for this kernel.

    At int4, products are also rounded such that weights compensate for one another's errors.
    `work`: a folder for temporary graphs and rounded products. Raises ValueError where activations pass fp32.
    """
    return _Calibrator(config, tensors, kernel, work, only_dense=only_dense).run(texts)


class _Calibrator:
    def __init__(self, config: Config, tensors: Weights, kernel: str, work: Path, *, only_dense: bool) -> None:
        self._config = config
        self._tensors = tensors
        self._kernel = kernel
        self._work = work
        self._is_int4 = kernel.startswith("int4")
        widths = [config.n_embd, config.inner_size]
        self._better = functools.partial(better_kernels, widths=widths, only_dense=only_dense)
        self._found = Calibration()

    def run(self, texts: Ids) -> Calibration:
        layers = LayerInputs(self._config, self._tensors, texts, self._work, moments=self._is_int4)
        if self._is_int4:
            folder = self._work / "rounded"
            folder.mkdir()
            self._found.rounded = RoundedFiles(folder)
        for layer in tqdm(range(self._config.n_layer), desc="      layers", unit="layer"):
            inputs = layers.run(layer)
            for name, found in inputs.items():
                self._equalize(name, found)
            if self._is_int4:
                self._round(inputs)
        self._equalize_output(layers.output(OUTPUT))
        return self._found

    def _equalize(self, name: str, inputs: Inputs) -> None:
        """Choose for one product of a layer."""
        weight = self._tensors[f"{name}.weight"]
        part = np.ascontiguousarray(weight[:, trial.some_columns(weight.shape[1])])
        expected = inputs.sample.astype(np.float64) @ part
        floor = activation_floor(self._config) if name.endswith("mlp.c_proj") else None

        def error(kernel: str, equalized: Equalization) -> float:
            scaled = np.ascontiguousarray(part * equalized.scale[:, None])
            linear = Linear(scaled, np.zeros(part.shape[1], np.float32), floor)
            unshifted = expected - equalized.shift.astype(np.float64) @ part
            x = equalized.apply(inputs.sample)
            found = trial.run_product(make_kernel(kernel), x, linear, self._work)
            return trial.relative_error(found, unshifted, inputs.weights)

        self._choose(name, self._kernel, dict(self._candidates(name, inputs, weight)), error)

    def _equalize_output(self, inputs: Inputs) -> None:
        matrix = self._tensors["wte.weight" if self._config.tie_word_embeddings else "lm_head.weight"]
        part = np.ascontiguousarray(matrix[trial.some_columns(len(matrix))])
        expected = inputs.sample.astype(np.float64) @ part.T

        def error(kernel: str, equalized: Equalization) -> float:
            scaled = np.ascontiguousarray(part * equalized.scale)
            found = trial.run_output(make_kernel(kernel), equalized.apply(inputs.sample), scaled, self._work)
            return trial.relative_error(found, expected, inputs.weights)

        self._choose(OUTPUT, output_kernel(self._kernel), dict(self._candidates(OUTPUT, inputs, matrix.T)), error)

    def _choose(
        self, name: str, kernel: str, candidates: dict[str, Equalization], error: Callable[[str, Equalization], float]
    ) -> None:
        errors = {candidate: error(kernel, found) for candidate, found in candidates.items()}
        best = min(errors, key=errors.__getitem__)
        preferred = PREFERRED["int4" if self._is_int4 else "int8"]
        if preferred in errors and errors[best] > CLEARLY * errors[preferred]:
            best = preferred
        self._found.chosen[name] = best
        self._found.equalizations[name] = candidates[best]
        better = {step: error(step, candidates[best]) for step in self._better(kernel)}
        self._found.errors[name] = {kernel: errors[best], **better}

    def _candidates(self, name: str, inputs: Inputs, weight: Floats) -> Iterator[tuple[str, Equalization]]:
        """What may be done to the input of this product; weight: [n_in, n_out]."""
        n_in = len(weight)
        can_shift = equalization.can_shift(name)
        can_scale = equalization.can_scale(name, self._config.activation_function)
        for candidate in CANDIDATES:
            if (candidate.strength and not can_scale) or (candidate.name == "shift" and not can_shift):
                continue
            shift = inputs.mean if can_shift and candidate.shifts else np.zeros(n_in, np.float32)
            scale = np.ones(n_in, np.float32)
            if candidate.strength:
                sizes = self._sizes(candidate, inputs, weight, shift)
                scale = equalization.scales(*sizes, candidate.strength)
            yield candidate.name, Equalization(scale, shift)

    @staticmethod
    def _sizes(candidate: Candidate, inputs: Inputs, weight: Floats, shift: Floats) -> tuple[Floats, Floats]:
        """Of the channels of the shifted input, and of the weights that read them, [n_in] each."""
        if candidate.is_peak:
            return np.abs(inputs.sample - shift).max(0), np.abs(weight).max(1)
        sizes = inputs.spread if shift.any() else inputs.size
        return sizes, equalization.root_mean_square(weight, 1)

    def _round(self, inputs: dict[str, Inputs]) -> None:
        """Round the products of a layer to 4 bits, each for its equalized input."""
        equalized = EqualizedTensors(self._config, self._tensors, self._found.equalizations)
        for name, found in inputs.items():
            if found.moments is None or self._found.rounded is None:
                raise AssertionError("int4 measures moments")
            moments = self._found.equalizations[name].moments(found.moments, found.mean)
            weight = equalized[f"{name}.weight"].T
            self._found.rounded[name] = quantize_int4(weight, int(self._kernel.split()[1]), moments)
            # the largest array there is
            found.moments = None
