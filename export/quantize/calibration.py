"""Calibration: run the model over a text, and choose for every product the equalization with the smallest error."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from export.checkpoint.config import Config
from export.graph.graph import Weights, activation_floor
from export.quantize.choice import Choice, Errors, choose_output, choose_product
from export.quantize.dense import Range
from export.quantize.equalization import OUTPUT, Equalization, EqualizedTensors
from export.quantize.inputs import Inputs, LayerInputs
from export.quantize.int4 import Rounded, RoundedFiles, quantize_int4
from export.quantize.kernels import STATIC, better_kernels, kernel_of_product, output_kernel
from export.quantize.precision import Floats
from export.quantize.texts import Ids
from runtime.graph.kernels import FrequentRows


@dataclasses.dataclass
class Calibration:
    """The results of calibration, by the name of the product; the output layer is `OUTPUT`.

    chosen: the name of the candidate, see `export.quantize.choice`. errors: those of the usual kernel and of more exact
    kernels. rounded: at int4, the weights that GPTQ has rounded already. ranges: with static activations, the lowest
    and the highest equalized input. texts: the text, ids [n_texts, n_tokens].
    """

    equalizations: dict[str, Equalization] = dataclasses.field(default_factory=dict)
    chosen: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, Errors] = dataclasses.field(default_factory=dict)
    rounded: Rounded | None = None
    ranges: dict[str, Range] = dataclasses.field(default_factory=dict)
    texts: Ids = dataclasses.field(default_factory=lambda: np.empty((0, 0), np.int64))

    def keep(self, name: str, choice: Choice) -> None:
        """Store the choice for a product."""
        self.equalizations[name] = choice.equalization
        self.chosen[name] = choice.candidate
        self.errors[name] = choice.errors


def calibrate(
    config: Config, tensors: Weights, texts: Ids, kernel: str, work: Path, *, only_dense: bool = False
) -> Calibration:
    """Run the texts [n_texts, n_tokens] through the model layer by layer, and equalize every product for `kernel`.

    At int4, products are also rounded with GPTQ, so that weights compensate for one another's rounding errors.
    work: a folder for temporary graphs and rounded products. only_dense: measure the errors of more exact kernels only
    for those that are fast on every processor. Raises ValueError where activations overflow fp32.
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
        self._rounded: RoundedFiles | None = None

    def run(self, texts: Ids) -> Calibration:
        self._found.texts = texts
        layers = LayerInputs(self._config, self._tensors, texts, self._work, moments=self._is_int4)
        if self._is_int4:
            folder = self._work / "rounded"
            folder.mkdir()
            self._rounded = RoundedFiles(folder)
            self._found.rounded = self._rounded
        for layer in tqdm(range(self._config.n_layer), desc="      layers", unit="layer"):
            inputs = layers.run(layer)
            # In reverse order: a product absorbs the equalization of the product that reads its output, which must
            # therefore be chosen first.
            for name in reversed(inputs):
                choice = self._choose(name, inputs[name])
                self._found.keep(name, choice)
                if next(iter(choice.errors)) == STATIC:
                    self._found.ranges[name] = choice.equalization.range(inputs[name].lowest, inputs[name].highest)
            if self._is_int4:
                self._round(inputs)
        # A classifier has no output layer, and its head stays in fp32.
        if self._config.head is None:
            inputs_of_output = layers.output(OUTPUT)
            self._found.keep(OUTPUT, self._choose_output(inputs_of_output))
            if self._is_int4:
                self._round_output(inputs_of_output)
        return self._found

    def _choose(self, name: str, inputs: Inputs) -> Choice:
        """Choose the equalization of a product in a layer."""
        equalized = EqualizedTensors(self._config, self._tensors, self._found.equalizations)
        kernel = kernel_of_product(self._kernel, name)
        return choose_product(
            name,
            equalized[f"{name}.weight"],
            inputs,
            [kernel, *self._better(kernel)],
            activation_function=self._config.activation_function,
            floor=activation_floor(self._config) if name.endswith("mlp.c_proj") else None,
            is_post_norm=self._config.is_post_norm,
        )

    def _choose_output(self, inputs: Inputs) -> Choice:
        """Choose the equalization of the output layer."""
        kernel = output_kernel(self._kernel)
        return choose_output(self._tensors[f"{self._matrix}.weight"], inputs, [kernel, *self._better(kernel)])

    @property
    def _matrix(self) -> str:
        """The matrix of the output layer."""
        return "wte" if self._config.tie_word_embeddings else "lm_head"

    def _round(self, inputs: dict[str, Inputs]) -> None:
        """Round the products of a layer to 4 bits with GPTQ, each for its equalized input."""
        equalized = EqualizedTensors(self._config, self._tensors, self._found.equalizations)
        for name, found in inputs.items():
            self._round_product(name, name, equalized[f"{name}.weight"].T, found)

    def _round_output(self, inputs: Inputs) -> None:
        """Round the rows of the output layer that are not int8."""
        equalized = EqualizedTensors(self._config, self._tensors, self._found.equalizations)
        matrix = equalized[f"{self._matrix}.weight"]
        self._round_product(OUTPUT, self._matrix, matrix[FrequentRows.n_first(len(matrix)) :], inputs)

    def _round_product(self, product: str, name: str, matrix: Floats, inputs: Inputs) -> None:
        """Round the matrix [n_out, n_in] of a product with GPTQ, and store it under its name."""
        if inputs.moments is None or self._rounded is None:
            raise AssertionError("calibration for int4 must measure second moments")
        moments = self._found.equalizations[product].moments(inputs.moments, inputs.mean)
        self._rounded[name] = quantize_int4(matrix, int(self._kernel.split()[1]), moments)
        # Free it now: it is the largest array of the build.
        inputs.moments = None
