"""Calibration: while the model reads a text, find for every product what makes it lose least when it is rounded."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from tqdm import tqdm

from export.checkpoint.config import Config
from export.graph.graph import Weights, activation_floor, architecture
from export.quantize.choice import Choice, Errors, choose_output, choose_product
from export.quantize.equalization import OUTPUT, Equalization, EqualizedTensors
from export.quantize.inputs import Inputs, LayerInputs
from export.quantize.int4 import RoundedFiles, quantize_int4
from export.quantize.kernels import better_kernels, output_kernel
from export.quantize.texts import Ids


@dataclasses.dataclass
class Calibration:
    """What calibration found, by the product's name; the output layer is `OUTPUT`."""

    equalizations: dict[str, Equalization] = dataclasses.field(default_factory=dict)
    chosen: dict[str, str] = dataclasses.field(default_factory=dict)  # name of the candidate
    errors: dict[str, Errors] = dataclasses.field(default_factory=dict)  # of the kernel and of better ones
    rounded: RoundedFiles | None = None  # int4 products

    def keep(self, name: str, choice: Choice) -> None:
        """Keep what was chosen for a product."""
        self.equalizations[name] = choice.equalization
        self.chosen[name] = choice.candidate
        self.errors[name] = choice.errors


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
            # a product's columns first become what the next product's choice makes of them
            for name in reversed(inputs):
                self._found.keep(name, self._choose(name, inputs[name]))
            if self._is_int4:
                self._round(inputs)
        self._found.keep(OUTPUT, self._choose_output(layers.output(OUTPUT)))
        return self._found

    def _choose(self, name: str, inputs: Inputs) -> Choice:
        """Of a product in a layer."""
        equalized = EqualizedTensors(self._config, self._tensors, self._found.equalizations)
        return choose_product(
            name,
            equalized[f"{name}.weight"],
            inputs,
            [self._kernel, *self._better(self._kernel)],
            activation_function=self._config.activation_function,
            floor=activation_floor(self._config) if name.endswith("mlp.c_proj") else None,
            is_post_norm=architecture(self._config).is_post_norm,
        )

    def _choose_output(self, inputs: Inputs) -> Choice:
        matrix = self._tensors["wte.weight" if self._config.tie_word_embeddings else "lm_head.weight"]
        kernel = output_kernel(self._kernel)
        return choose_output(matrix, inputs, [kernel, *self._better(kernel)])

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
