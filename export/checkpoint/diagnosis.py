"""Errors for folders that are not a whole checkpoint: they name what the folder is, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from runtime._json import read_json
from runtime.model.integrity import CHECKSUMS

CONFIG = "config.json"
GRAPH = "model.onnx"
ADAPTER = "adapter_config.json"
NANOGPT = "ckpt.pt"
WEIGHTS = re.compile(r"(model|pytorch_model).*\.(safetensors|bin)(\.index\.json)?")
TOKENIZERS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
_STRAYS = {
    re.compile(r"multiple_choice_head\..*"): "a head for multiple choice",
    re.compile(r"qa_outputs\..*"): "a head for question answering",
    re.compile(r"(v_head|value_head|reward_head|v_head\.summary)\..*"): "a value or reward head",
    re.compile(r"(score|classifier)\..*"): "a classifier's head",
}
"""Names of tensors, and the heads that they belong to."""

# The folders that transformers' Trainer writes.
_STEP = re.compile(r"checkpoint-(\d+)")


def check_folder(folder: Path) -> None:
    """Raise an error, saying what to do, unless the folder has config.json and weights, which are not read.

    Raises NotADirectoryError, FileNotFoundError, or ValueError for a folder of another kind, such as an adapter.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the folder that holds the checkpoint")
    names = {path.name for path in folder.iterdir()}
    has_weights = any(map(WEIGHTS.fullmatch, names))
    if ADAPTER in names and not has_weights:
        raise ValueError(adapter(str(folder), folder / ADAPTER))
    if GRAPH in names and not has_weights:
        raise ValueError(_built(folder, is_ours=CHECKSUMS in names))
    if CONFIG not in names:
        raise FileNotFoundError(without_config(str(folder), names, folder.joinpath))


def without_config(name: str, names: Collection[str], fetch: Callable[[str], Path]) -> str:
    """The error message for a folder or hub repository without config.json.

    names: of its files. fetch: returns the path of one of its files.
    """
    if ADAPTER in names:
        return adapter(name, fetch(ADAPTER))
    if NANOGPT in names:
        return f"{name} holds a checkpoint of nanoGPT: give {fetch(NANOGPT)} itself, with --allow-pickle"
    steps = sorted(int(match[1]) for match in map(_STEP.fullmatch, names) if match)
    if steps:
        last = fetch(f"checkpoint-{steps[-1]}")
        return f"{name} holds the checkpoints of a training; give one of them, such as {last}"
    return f"{Path(name) / CONFIG} is missing; give the folder that holds the checkpoint"


def adapter(name: str, config: Path) -> str:
    """The error message for a PEFT adapter that was given in place of its base model."""
    base = read_json(config).get("base_model_name_or_path")
    is_local = config.parent == Path(name)
    fetched = "" if is_local else f"hf download {name} --local-dir DIR fetches it, and "
    command = f"python export/build.py {base or 'BASE'} --adapter {name if is_local else 'DIR'}"
    whole = f"{name} is an adapter of PEFT for {base or 'another model'}, not a whole model"
    return f"{whole}: {fetched}{command} builds both together"


def _built(folder: Path, *, is_ours: bool) -> str:
    if is_ours:
        return (
            f"{folder} is a model folder, built already: gpt2-edge generate --model {folder} runs it. To build it in "
            "another way, give the checkpoint that it was made from"
        )
    return (
        f"{folder} is an ONNX export, without the weights to build from: runtime.load opens a plain one of GPT-2 as it "
        "is. To build a model, give the checkpoint that it was made from"
    )


def describe_strays(names: Collection[str]) -> str:
    """What heads these tensors belong to, as the end of an error message; "" for none that is known."""
    found = sorted(set(_heads_of(names)))
    return f" ({' and '.join(found)})" if found else ""


def _heads_of(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        yield from (head for pattern, head in _STRAYS.items() if pattern.fullmatch(name))


def check_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError, saying how to get one, for a checkpoint without a tokenizer."""
    if not _has_tokenizer(folder):
        raise FileNotFoundError(without_tokenizer(str(folder), folder.parent, config))


def without_tokenizer(name: str, above: Path | None, config: Mapping[str, Any]) -> str:
    """The error message for a checkpoint without a tokenizer, such as transformers' Trainer writes.

    above: the folder that the checkpoint is in; Trainer may have written the tokenizer there.
    """
    problem = f"{name} has no tokenizer, neither tokenizer.json nor vocab.json and merges.txt"
    if above is not None and _has_tokenizer(above):
        return f"{problem}: --tokenizer {above} takes that of the folder it is in"
    known = config.get("_name_or_path")
    base = known if isinstance(known, str) and known and known != name else "BASE"
    return (
        f"{problem}: --tokenizer FOLDER takes that of the model it was trained from. This writes the folder: python -c "
        f"\"from transformers import AutoTokenizer as T; T.from_pretrained('{base}').save_pretrained('FOLDER')\""
    )


def _has_tokenizer(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in files) for files in TOKENIZERS)
