"""Statistics of the inputs of every product over the calibration text, with one layer in memory at a time."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.checkpoint.config import Config
from export.graph.graph import Weights, build_layer
from export.quantize.precision import Floats
from export.quantize.texts import Ids
from runtime.hardware.threads import usable_threads

Doubles = NDArray[np.float64]
SAMPLE_ROWS = 384
"""How many inputs of each product are kept to try kernels on."""
# The weight of first positions in the error of a sample. They are rare, but their activations differ from all others',
# and all later positions attend to them.
FIRST_SHARE = 0.25
DAMAGED = (
    "{name}: on the calibration text the inputs of this product overflow fp32; the weights are damaged, or too large. "
    "--no-calibration rounds without a text"
)


@dataclasses.dataclass
class Inputs:
    """Statistics of the inputs x [n_in] of one product over all tokens of the texts.

    size: root mean square of each channel. lowest, highest: of each channel. sample: inputs at the first position of
    every text and at random others. weights: how much the error of each sampled row counts; they sum to 1. moments: the
    mean of x x^T; None if it was not measured.
    """

    mean: Floats  # [n_in]
    size: Floats  # [n_in]
    lowest: Floats  # [n_in]
    highest: Floats  # [n_in]
    sample: Floats  # [n_rows, n_in]
    weights: Doubles  # [n_rows]
    moments: Doubles | None  # [n_in, n_in]

    @property
    def spread(self) -> Floats:
        """Standard deviation of each channel, [n_in]."""
        variance = np.square(self.size, dtype=np.float64) - np.square(self.mean, dtype=np.float64)
        deviation: Floats = np.sqrt(np.maximum(variance, 0)).astype(np.float32)
        return deviation


class _Sums:
    """First and second moments of the inputs of one product, added up text by text."""

    def __init__(self, n_in: int, n_tokens: int, *, moments: bool) -> None:
        self._first = np.zeros(n_in)
        self._second = np.zeros((n_in, n_in)) if moments else np.zeros(n_in)
        self._lowest = np.full(n_in, np.inf, np.float32)
        self._highest = np.full(n_in, -np.inf, np.float32)
        self._n_tokens = n_tokens
        self._sample: list[Floats] = []
        self._is_first: list[NDArray[np.bool_]] = []

    def add(self, x: Floats, sampled: NDArray[np.intp]) -> None:
        """Add the inputs [n, n_in] of one text. sampled: the rows to keep in the sample."""
        # fp64, since moments that are summed in fp32 may not be invertible.
        rows = x.astype(np.float64)
        self._first += rows.sum(0)
        self._lowest = np.minimum(self._lowest, x.min(0))
        self._highest = np.maximum(self._highest, x.max(0))
        self._sample.append(x[sampled])
        self._is_first.append(sampled == 0)
        rows /= math.sqrt(self._n_tokens)
        self._second += rows.T @ rows if self._second.ndim == 2 else np.square(rows).sum(0)

    def finish(self, name: str) -> Inputs:
        """The statistics over all texts. Raises ValueError if the inputs overflowed fp32."""
        if not np.isfinite(self._second).all():
            raise ValueError(DAMAGED.format(name=name))
        has_moments = self._second.ndim == 2
        squares = self._second.diagonal() if has_moments else self._second
        return Inputs(
            mean=(self._first / self._n_tokens).astype(np.float32),
            size=np.sqrt(squares).astype(np.float32),
            lowest=self._lowest,
            highest=self._highest,
            sample=np.concatenate(self._sample),
            weights=_weights(np.concatenate(self._is_first)),
            moments=self._second if has_moments else None,
        )


def _weights(is_first: NDArray[np.bool_]) -> Doubles:
    """The weight of each sampled row: `FIRST_SHARE` goes to first positions, the rest to the others."""
    n_first = int(is_first.sum())
    return np.where(is_first, FIRST_SHARE / n_first, (1 - FIRST_SHARE) / (len(is_first) - n_first))


class LayerInputs:
    """Runs the layers of a checkpoint in fp32 over texts [n_texts, n_tokens], one after the other."""

    def __init__(self, config: Config, tensors: Weights, texts: Ids, work: Path, *, moments: bool) -> None:
        """work: a folder for the graph of one layer. moments: measure second moments E[x x^T] too."""
        self._config = config
        self._tensors = tensors
        self._work = work
        self._moments = moments
        self._hidden = tensors["wte.weight"][texts] + tensors["wpe.weight"][: texts.shape[1]]
        generator = np.random.default_rng(0)
        n_later = texts.shape[1] - 1
        n_others = min(max(1, SAMPLE_ROWS // len(texts) - 1), n_later)
        self._sampled = [
            np.append(0, 1 + generator.choice(n_later, n_others, replace=False)).astype(np.intp) for _ in texts
        ]

    def run(self, layer: int) -> dict[str, Inputs]:
        """Run the next layer; returns the inputs of its products by name. Raises ValueError if they overflow fp32."""
        folder = self._work / "layer"
        folder.mkdir()
        names = build_layer(self._config, self._tensors, layer, folder)
        session = open_graph(folder / "model.onnx")
        sums: dict[str, _Sums] = {}
        for index, hidden in enumerate(self._hidden):
            self._hidden[index], *read = session.run(["next_hidden", *names], self._feeds(layer, hidden[None]))
            # Without warnings: `finish` raises an error for numbers that overflow.
            with np.errstate(over="ignore", invalid="ignore"):
                self._add(sums, dict(zip(names, read, strict=True)), index)
        # Close the mapped file first: Windows cannot delete a file that is mapped.
        del session
        shutil.rmtree(folder)
        return {name: product.finish(name) for name, product in sums.items()}

    def output(self, name: str) -> Inputs:
        """The inputs of the output layer; call it after the last layer. Raises ValueError if they overflow fp32."""
        n_texts, length, n_embd = self._hidden.shape
        sums = _Sums(n_embd, n_texts * length, moments=self._moments)
        with np.errstate(over="ignore", invalid="ignore"):
            for hidden, sampled in zip(self._hidden, self._sampled, strict=True):
                sums.add(self._normed(hidden), sampled)
        return sums.finish(name)

    def _normed(self, hidden: Floats) -> Floats:
        """What the output layer reads, [length, n_embd]: ends with ln_f, which a GPT does not have."""
        if self._config.is_post_norm:
            return hidden
        gain, bias = (self._tensors[f"{self._config.final_norm}.{part}"] for part in ("weight", "bias"))
        centred = hidden - hidden.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        normed: Floats = centred / np.sqrt(variance + self._config.layer_norm_epsilon) * gain + bias
        return normed

    def _add(self, sums: dict[str, _Sums], read: dict[str, Floats], index: int) -> None:
        n_tokens = self._hidden.shape[0] * self._hidden.shape[1]
        for name, x in read.items():
            if name not in sums:
                sums[name] = _Sums(x.shape[-1], n_tokens, moments=self._moments)
            sums[name].add(x[0], self._sampled[index])

    def _feeds(self, layer: int, hidden: Floats) -> dict[str, NDArray[np.generic]]:
        past = np.empty((1, self._config.n_head, 0, self._config.head_dim), np.float32)
        pasts = {f"past_key_values.{layer}.{part}": past for part in ("key", "value")}
        return {"hidden": hidden, "attention_mask": np.ones(hidden.shape[:2], np.int64), **pasts}


def open_graph(graph: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a CPU session for a graph that the build has made."""
    options = onnxruntime.SessionOptions()
    # Errors only: onnxruntime would warn that some constants of a partial graph are unused.
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_threads()
    return onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
