"""Merge LoRA adapters of PEFT into the weights of their base model (Hu et al. 2021, arXiv 2106.09685).

    W + scale * (B A)^T     for GPT-2's products, which are stored as [n_in, n_out]
    W + scale * B A         for lm_head, which is stored as [n_out, n_in]
    W + scale * (B A)^T     for the embeddings, B [n_embd, r], A [r, n_rows]

with A [r, n_in], B [n_out, r] and a scale of alpha / r, or alpha / sqrt(r) with rank-stabilized LoRA. Where the base
model has one matrix for embeddings and output layer, and the adapter changes only one of the two, the merged model has
two matrices: that is the function that was trained.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from export.checkpoint import config as config_file
from export.checkpoint import pickle_file, tokenizer_conversion
from export.checkpoint.config import Config
from export.checkpoint.diagnosis import TOKENIZERS
from export.checkpoint.weights import INPUT, OUTPUT, Tensors, write_weights
from export.json_file import write_json
from runtime._json import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_LORA = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB])")
# Settings of LoRA that are applied here, or that matter for training only.
_KNOWN = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias", "lora_bias",
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "lora_dropout", "init_lora_weights", "peft_type", "task_type", "auto_mapping", "base_model_name_or_path",
    "revision", "peft_version", "inference_mode", "parent_library", "megatron_core", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "velora_config", "runtime_config", "qalora_group_size",
}  # fmt: skip
# Initializations that change the base model's weights before training.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MERGED_BY_PEFT = "peft's merge_and_unload() and save_pretrained(DIR) write a whole model, which is built as DIR"

Floats = NDArray[np.float32]


@dataclasses.dataclass
class _Delta:
    """The matrices and the bias that an adapter adds to one module."""

    a: Floats | None = None  # [r, n_in]
    b: Floats | None = None  # [n_out, r]
    bias: Floats | None = None  # [n_out]


class Adapter:
    """One adapter: settings and tensors, checked against the base model."""

    def __init__(self, folder: Path, base: Config, *, allow_pickle: bool = False) -> None:
        """Read a folder that peft's `save_pretrained` wrote, for a base model of this shape.

        Raises FileNotFoundError for a folder that has no adapter, ValueError for an adapter of another kind than LoRA,
        and for one that does not fit the base model.
        """
        self.folder = folder
        self._settings = read_settings(folder)
        self._base = base
        self.deltas: dict[str, _Delta] = {}
        self.replaced: dict[str, Floats] = {}
        self.tied_input: Floats | None = None
        for name, array in _read_tensors(folder, allow_pickle=allow_pickle).items():
            self._sort(name, array)
        if not self.deltas and not self.replaced:
            raise ValueError(f"{folder} has no weights that change the model")
        self._check()

    def _sort(self, stored: str, array: Floats) -> None:
        """Sort one tensor of the file into `deltas` or `replaced`."""
        name = stored.removeprefix("base_model.model.").removeprefix("transformer.")
        match = _LORA.fullmatch(name)
        if match is None:
            self._sort_whole(stored, name.replace(".base_layer.", "."), array)
            return
        delta = self.deltas.setdefault(match["module"], _Delta())
        part = match["part"]
        if part == "lora_B.bias":
            delta.bias = array
        elif part.startswith(("lora_A", "lora_embedding_A")):
            delta.a = array
        else:
            delta.b = array

    def _sort_whole(self, stored: str, name: str, array: Floats) -> None:
        """Sort a tensor that replaces the base model's: a trained bias, or a module that was saved whole."""
        if name not in self._base.tensor_shapes() and name != OUTPUT:
            raise ValueError(f"{self.folder}: {stored} belongs to nothing that the base model has")
        if name == INPUT and ".base_layer." in stored and self._base.tie_word_embeddings:
            # The matrix below a trained embedding; the output layer still shares it.
            self.tied_input = array
        self.replaced[name] = array

    def _check(self) -> None:
        """Raise ValueError, naming module and sizes, unless everything fits the base model."""
        shapes = self._base.tensor_shapes()
        shapes.setdefault(OUTPUT, shapes[INPUT])
        for name, array in self.replaced.items():
            is_resized = name in (INPUT, OUTPUT) and array.ndim == 2 and array.shape[1] == self._base.n_embd
            if array.shape != shapes[name] and not is_resized:
                self._refuse_shape(name, array.shape, shapes[name])
        for module, delta in self.deltas.items():
            weight = f"{module}.weight"
            if len(shapes.get(weight, ())) != 2:
                raise ValueError(
                    f"{self.folder} changes {module}, which the base model does not have: it has {self._base.n_layer} "
                    f"layers of attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj, wte, wpe and lm_head"
                )
            if delta.a is None or delta.b is None:
                raise ValueError(f"{self.folder} has only one of the two matrices A and B for {module}")
            self._check_delta(module, delta.a, delta.b, self._rows_and_columns(weight, shapes[weight]))

    def _rows_and_columns(self, weight: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """n_in and n_out of a module in LoRA's terms."""
        if weight in self.replaced:
            shape = self.replaced[weight].shape
        n_rows, n_columns = shape
        return (n_columns, n_rows) if weight == OUTPUT else (n_rows, n_columns)

    def _check_delta(self, module: str, a: Floats, b: Floats, sizes: tuple[int, int]) -> None:
        rank = self._rank(module)
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != sizes[0] or b.shape[0] != sizes[1]:
            raise ValueError(
                f"{self.folder} was trained on another base model: for {module} its matrices are {list(a.shape)} and "
                f"{list(b.shape)}, and this base model needs [{rank}, {sizes[0]}] and [{sizes[1]}, {rank}]"
            )
        if a.shape[0] != rank or b.shape[1] != rank:
            raise ValueError(
                f"{self.folder}: {module} has rank {a.shape[0]}, but {CONFIG} makes it {rank}; the folder is damaged"
            )

    def _refuse_shape(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        raise ValueError(
            f"{self.folder} was trained on another base model: its {name} is {list(found)}, this one's {list(wanted)}"
        )

    def _rank(self, module: str) -> int:
        return int(_by_pattern(self._settings.get("rank_pattern"), module, self._settings["r"]))

    def scale(self, module: str) -> float:
        """The factor on B A for this module."""
        rank = self._rank(module)
        alpha = float(_by_pattern(self._settings.get("alpha_pattern"), module, self._settings.get("lora_alpha", 8)))
        return alpha / math.sqrt(rank) if self._settings.get("use_rslora") else alpha / rank

    @property
    def trained_on(self) -> str:
        """The base model that the adapter names; "" where it names none."""
        return str(self._settings.get("base_model_name_or_path") or "")

    @property
    def summary(self) -> str:
        """Rank and modules in words."""
        parts = {name.split(".", 2)[-1] if name.startswith("h.") else name for name in [*self.deltas, *self.replaced]}
        base = f", trained on {self.trained_on}" if self.trained_on else ""
        return f"LoRA of rank {self._settings['r']} on {', '.join(sorted(parts))}{base}"

    def weight_delta(self, module: str) -> Floats:
        """The difference that the adapter adds to the stored weight of a module, in the shape of that weight."""
        delta = self.deltas[module]
        # `_check` has raised an error otherwise.
        assert delta.a is not None and delta.b is not None
        product = (delta.b @ delta.a) * np.float32(self.scale(module))
        return product if f"{module}.weight" == OUTPUT else product.T

    def merge(self, name: str, tensor: Floats) -> Floats:
        """One tensor of the base model with this adapter merged into it."""
        tensor = self.replaced.get(name, tensor)
        module, _, part = name.rpartition(".")
        delta = self.deltas.get(module)
        if delta is not None and part == "weight":
            tensor = tensor + self.weight_delta(module)
        if delta is not None and part == "bias" and delta.bias is not None:
            tensor = tensor + delta.bias * np.float32(self.scale(module))
        return tensor

    def changes(self, name: str) -> bool:
        """Whether the adapter changes this tensor of the base model."""
        return name in self.replaced or name.rpartition(".")[0] in self.deltas


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json. Raises ValueError, naming it, for anything but plain LoRA."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; --adapter names a folder that peft's save_pretrained wrote")
    settings = read_json(path)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{folder} is an adapter of the type {kind}; only LORA is merged here. {_MERGED_BY_PEFT}")
    if settings.get("use_dora"):
        raise ValueError(f"{folder} is a DoRA adapter (use_dora); only plain LoRA is merged here. {_MERGED_BY_PEFT}")
    unknown = sorted(key for key, value in settings.items() if key not in _KNOWN and value)
    if unknown:
        raise ValueError(f"{folder} uses {', '.join(unknown)}, which is not merged here. {_MERGED_BY_PEFT}")
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_BASE):
        raise ValueError(
            f"{folder} was trained with init_lora_weights {begun!r}, which changes the base model's weights too; "
            "peft's save_pretrained(..., path_initial_model_for_weight_conversion=...) writes a plain adapter"
        )
    rank = settings.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"{path}: r is {rank!r}; the rank, a whole number of at least 1, is expected")
    return settings


def merge(base: Path, folders: Sequence[Path], target: Path, *, allow_pickle: bool = False) -> Path:
    """Write the checkpoint `base` with the adapters merged into it, one after the other, to `target`; returns `target`.

    The tokenizer is that of the last adapter that has one, else the base model's. Prints a line for each adapter.
    Raises FileNotFoundError or ValueError, naming adapter and module, if an adapter does not fit.
    """
    config, raw = config_file.read(base / "config.json")
    tensors = Tensors(base, config)
    adapters = [Adapter(folder, config, allow_pickle=allow_pickle) for folder in folders]
    _check_together(adapters)
    for adapter in adapters:
        print(f"      adapter: {adapter.folder.name}, {adapter.summary}", flush=True)
    embeddings = _merged(adapters, INPUT, tensors[INPUT])
    output = _merged_output(adapters, tensors, config)
    if output is not None and len(output) != len(embeddings):
        raise ValueError(
            f"{folders[-1]} makes {len(embeddings)} rows of wte and {len(output)} of lm_head. Where tokens were added, "
            "peft's save_pretrained(..., save_embedding_layers=True) saves both"
        )
    if output is not None and np.array_equal(output, embeddings):
        output = None
    target.mkdir()
    pickle_file.copy_small_files(base, target)
    for folder in folders:
        _take_tokenizer(folder, target)
    write_json(target / "config.json", raw | {"vocab_size": len(embeddings), "tie_word_embeddings": output is None})
    write_weights(_tensors(adapters, tensors, config, embeddings, output), target)
    return target


def _check_together(adapters: Sequence[Adapter]) -> None:
    """Raise ValueError if one adapter replaces a tensor that another one changes: the result would depend on order."""
    for index, first in enumerate(adapters):
        for second in adapters[index + 1 :]:
            both = [name for name in first.replaced if second.changes(name)]
            both += [name for name in second.replaced if first.changes(name)]
            for name in both:
                if not np.array_equal(first.replaced.get(name), second.replaced.get(name)):  # type: ignore[arg-type]
                    raise ValueError(
                        f"{first.folder} and {second.folder} do not go together: both change {name}, which one of them "
                        "replaces whole (modules_to_save, or bias)"
                    )


def _merged(adapters: Sequence[Adapter], name: str, tensor: Floats) -> Floats:
    for adapter in adapters:
        tensor = adapter.merge(name, tensor)
    return tensor


def _merged_output(adapters: Sequence[Adapter], tensors: Tensors, config: Config) -> Floats | None:
    """The output layer with the adapters merged; None if it is still one matrix with the embeddings."""
    if not config.tie_word_embeddings:
        return _merged(adapters, OUTPUT, tensors[OUTPUT])
    if not any(adapter.changes(name) for adapter in adapters for name in (INPUT, OUTPUT)):
        return None
    shared = [adapter.tied_input for adapter in adapters if adapter.tied_input is not None]
    return _merged(adapters, OUTPUT, shared[-1] if shared else tensors[INPUT])


def _tensors(
    adapters: Sequence[Adapter], tensors: Tensors, config: Config, embeddings: Floats, output: Floats | None
) -> Iterator[tuple[str, Floats]]:
    for name in config.tensor_shapes():
        if name == INPUT:
            yield name, embeddings
        elif name != OUTPUT:
            yield name, _merged(adapters, name, tensors[name])
    if output is not None:
        yield OUTPUT, output


def _take_tokenizer(folder: Path, target: Path) -> None:
    """Replace the tokenizer in `target` by the adapter's, if it has one: the training may have added tokens."""
    has_read = any(all((folder / name).is_file() for name in names) for names in TOKENIZERS)
    if not has_read and tokenizer_conversion.slow_file(folder) is None:
        return
    for name in (*TOKENIZER_FILES, *tokenizer_conversion.SLOW):
        (target / name).unlink(missing_ok=True)
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def _read_tensors(folder: Path, *, allow_pickle: bool) -> dict[str, Floats]:
    if (folder / WEIGHTS).is_file():
        try:
            read: Mapping[str, Any] = load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS} is damaged or not a safetensors file: {error}") from None
    elif not (folder / PICKLE).is_file():
        raise FileNotFoundError(f"{folder / WEIGHTS} is missing; peft's save_pretrained writes it")
    elif not allow_pickle:
        raise FileNotFoundError(f"{folder / PICKLE} is a pickle; --allow-pickle reads it, its tensors only, with torch")
    else:
        tensors = pickle_file.load_tensors(folder / PICKLE)
        read = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    arrays = {name: np.asarray(array, np.float32) for name, array in read.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{folder}: {name} holds NaN or infinity; the adapter is damaged")
    return arrays


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern, a regular expression, that matches the end of the module's name, as in peft."""
    name = module if module == OUTPUT.removesuffix(".weight") else f"transformer.{module}"
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return default
