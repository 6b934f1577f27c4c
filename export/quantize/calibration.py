"""What a model's products read while the model reads text of its own: how int4 knows which errors count.

A text that suits the checkpoint is the one that the checkpoint writes, whatever its language and subject (Williams et
al. 2024, "Self-calibration for Language Model Quantization and Pruning").
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import tqdm

from export.config import Config
from export.graph import Weights, build_layer
from export.quantize.gptq import Doubles
from export.quantize.precision import Floats
from runtime.budget import CachedModel, cache_bytes
from runtime.cores import usable_threads
from runtime.generation import BATCH_SIZE, generate_pieces
from runtime.model import Model
from runtime.options import Options
from runtime.row import Place, Row

N_TOKENS = 16_384  # of text; half as many lose a little more, twice as many gain little
LONGEST = 1024  # tokens of one text
CACHE_BYTES = 650_000_000  # of keys and values while texts are written: as many at once as fit, at least one


def texts_at_once(config: CachedModel, length: int) -> int:
    """How many texts of `length` tokens."""
    return max(1, min(BATCH_SIZE, CACHE_BYTES // cache_bytes(config, length, 1)))


def write_text(model: Path) -> NDArray[np.int64]:
    """Texts as long as the context, sampled from a model folder: ids [n_texts, n_tokens].

    Raises ValueError for a model whose logits are not numbers.
    """
    with Model(model) as opened:
        config = opened.config
        length = min(config.n_positions, LONGEST)
        rows = [_begin(opened, length, seed) for seed in range(math.ceil(N_TOKENS / length))]
        with tqdm(total=len(rows) * (length - 1), desc="      text", unit="token") as bar:
            for _ in generate_pieces(opened, rows, texts_at_once(config, length)):
                bar.update()
    return np.array([row.ids for row in rows])


def _begin(model: Model, length: int, seed: int) -> Row:
    """A text after the token that texts begin with, or where there is none, any; probabilities are the model's own."""
    bos, n_vocab = model.config.bos_token_id, model.config.vocab_size
    first = bos if bos is not None and 0 <= bos < n_vocab else int(np.random.default_rng(seed).integers(n_vocab))
    options = Options(temperature=1.0, max_new_tokens=length - 1, min_new_tokens=length - 1, seed=seed)
    return Row(model, [first], options, Place())


class Calibration:
    """The mean of x x^T [n_in, n_in] over all inputs x of each product, by its name; each can be had once.

    Products come in the order of the layers, one layer in memory at a time: it is run in fp32 as the graph has it.
    """

    def __init__(self, config: Config, tensors: Weights, texts: NDArray[np.int64], work: Path) -> None:
        self._config, self._tensors, self._work = config, tensors, work
        self._hidden = tensors["wte.weight"][texts] + tensors["wpe.weight"][: texts.shape[1]]
        self._layer = 0
        self._found: dict[str, Doubles] = {}

    def pop(self, name: str) -> Doubles:
        """Raises KeyError for one that was had, or that no layer has; ValueError where numbers pass fp32."""
        if not self._found and self._layer < self._config.n_layer:
            with np.errstate(over="ignore", invalid="ignore"):  # refused below
                self._found = self._run_layer()
            self._layer += 1
        moments = self._found.pop(name)
        if not np.isfinite(moments).all():
            raise ValueError(
                f"{name}: while the model reads text of its own, what this product reads passes fp32; its weights are "
                "damaged, or too large. --no-calibration rounds without text"
            )
        return moments

    def _run_layer(self) -> dict[str, Doubles]:
        folder = self._work / "layer"
        folder.mkdir()
        names = build_layer(self._config, self._tensors, self._layer, folder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # not that some constants have no user here
        options.intra_op_num_threads = usable_threads()
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
        sums: dict[str, Doubles] = {}
        for index, hidden in enumerate(self._hidden):
            self._hidden[index], *read = session.run(["next_hidden", *names], self._feeds(hidden[None]))
            for name, x in zip(names, read, strict=True):
                rows = x[0].astype(np.float64) / math.sqrt(self._hidden[..., 0].size)  # fp32 sums may have no inverse
                if name in sums:
                    sums[name] += rows.T @ rows
                else:
                    sums[name] = rows.T @ rows
        del session  # Windows deletes no mapped file
        shutil.rmtree(folder)
        return sums

    def _feeds(self, hidden: Floats) -> dict[str, NDArray[np.generic]]:
        past = np.empty((1, self._config.n_head, 0, self._config.head_dim), np.float32)
        pasts = {f"past_key_values.{self._layer}.{part}": past for part in ("key", "value")}
        return {"hidden": hidden, "attention_mask": np.ones(hidden.shape[:2], np.int64), **pasts}
