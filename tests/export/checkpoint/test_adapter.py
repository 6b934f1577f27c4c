"""LoRA adapters: merged as peft merges them, named in the card, refused by name where they do not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_with_torch
from transformers import GPT2LMHeadModel

import runtime
from export import build
from export.checkpoint import adapter
from export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from tests.support.building import QUICK, byte_tokenizer, error_line, run_here
from tests.support.checkpoints import (
    CLOSE,
    difference,
    folder_logits,
    some_ids,
    torch_logits,
    write_checkpoint,
)
from tests.support.checkpoints import open_checkpoint as open_with_transformers
from tests.support.optional import optional

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = some_ids(40, 257)
ALL_PRODUCTS = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "base"
    write_checkpoint(folder)
    return folder


def train(base: Path | GPT2LMHeadModel, folder: Path, seed: int = 1, **settings: Any) -> Any:
    """Save an adapter whose every trainable tensor has moved; returns the model of peft."""
    peft = optional("peft")
    model = open_with_transformers(base) if isinstance(base, Path) else base
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped


def merged(base: Path, work: Path, *adapters: Path) -> Checkpoint:
    work.mkdir(exist_ok=True)
    return open_checkpoint(str(base), work, adapters=adapters)


KINDS: dict[str, Settings] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    "all products": {"r": 4, "lora_alpha": 8, "target_modules": ALL_PRODUCTS, "fan_in_fan_out": True},
    "a wrong fan_in_fan_out, which peft corrects": {"r": 2, "lora_alpha": 8, "target_modules": ["c_fc"]},
    "rank-stabilized": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["c_attn"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL_PRODUCTS,
        "rank_pattern": {"c_attn": 2, r"h\.1\.mlp\.c_fc": 8},
        "alpha_pattern": {"mlp.c_proj": 1, r"transformer\.h\.[02]\.attn\.c_proj": 32},
    },
    "one layer": {"r": 4, "target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": "h"},
    "trained biases": {"r": 4, "target_modules": ["c_attn"], "bias": "all"},
    "biases of the products": {"r": 4, "target_modules": ["c_attn", "c_fc"], "bias": "lora_only"},
    "a bias of its own": {"r": 4, "target_modules": ["c_attn"], "lora_bias": True},
    "positions": {"r": 4, "target_modules": ["wpe", "c_attn"]},
    "embeddings": {"r": 4, "target_modules": ["wte", "c_attn"]},
    "output layer": {"r": 4, "target_modules": ["lm_head", "c_attn"]},
    "a norm saved whole": {"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["ln_f"]},
    "output layer saved whole": {"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    "embeddings saved whole": {"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["wte"]},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_logits_are_those_of_peft(base: Path, tmp_path: Path, settings: Settings) -> None:
    trained = train(base, tmp_path / "adapter", **settings)
    before = torch_logits(open_with_transformers(base), IDS)
    expected = torch_logits(trained, IDS)
    assert difference(expected, before) > 0.01
    folder = merged(base, tmp_path / "work", tmp_path / "adapter").folder
    assert difference(torch_logits(open_with_transformers(folder), IDS), expected) < 10 * CLOSE


def test_weights_are_those_of_pefts_merge(base: Path, tmp_path: Path) -> None:
    trained = train(base, tmp_path / "adapter", **KINDS["patterns"])
    whole = trained.merge_and_unload().state_dict()
    checkpoint = merged(base, tmp_path / "work", tmp_path / "adapter")
    for name in checkpoint.config.tensor_shapes():
        expected = whole[f"transformer.{name}"].numpy()
        np.testing.assert_allclose(checkpoint.tensors[name], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_several_adapters_add_up(base: Path, tmp_path: Path) -> None:
    first = train(base, tmp_path / "first", **KINDS["all products"]).merge_and_unload()
    second = train(first, tmp_path / "second", seed=2, **KINDS["rank-stabilized"])
    expected = torch_logits(second, IDS)
    folder = merged(base, tmp_path / "work", tmp_path / "first", tmp_path / "second").folder
    assert difference(torch_logits(open_with_transformers(folder), IDS), expected) < 10 * CLOSE


def test_added_tokens_and_their_tokenizer(base: Path, tmp_path: Path) -> None:
    model = open_with_transformers(base)
    model.resize_token_embeddings(304, mean_resizing=False)
    trained = train(model, tmp_path / "adapter", r=2, target_modules=["c_attn"])
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer = byte_tokenizer(303)
    tokenizer.add_special_tokens(["<user>"])
    tokenizer.save(str(tmp_path / "adapter" / "tokenizer.json"))
    checkpoint = merged(base, tmp_path / "work", tmp_path / "adapter")
    assert (checkpoint.config.vocab_size, checkpoint.config.tie_word_embeddings) == (304, True)
    assert (checkpoint.folder / "tokenizer.json").read_bytes() == (tmp_path / "adapter" / "tokenizer.json").read_bytes()
    expected = torch_logits(trained, [303, *IDS])
    assert difference(torch_logits(open_with_transformers(checkpoint.folder), [303, *IDS]), expected) < 10 * CLOSE


def test_a_pickled_adapter(base: Path, tmp_path: Path) -> None:
    trained = train(base, tmp_path / "adapter", **KINDS["attention"])
    torch.save({name: torch.tensor(array) for name, array in stored(tmp_path).items()}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter" / adapter.WEIGHTS).unlink()
    shutil.move(tmp_path / "adapter_model.bin", tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.bin is a pickle; --allow-pickle reads it"):
        merged(base, tmp_path / "work", tmp_path / "adapter")
    target = adapter.merge(base, [tmp_path / "adapter"], tmp_path / "whole", allow_pickle=True)
    expected = torch_logits(trained, IDS)
    assert difference(torch_logits(open_with_transformers(target), IDS), expected) < 10 * CLOSE


# without peft ------------------------------------------------------------------------------------------------------


def write_adapter(folder: Path, **settings: Any) -> Path:
    """An adapter of rank 2 on h.0.attn.c_attn, as peft lays it out."""
    folder.mkdir(exist_ok=True)
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "owner/base"} | settings
    (folder / adapter.CONFIG).write_text(json.dumps(about), encoding="utf-8")
    generator = np.random.default_rng(0)
    module = "base_model.model.transformer.h.0.attn.c_attn"
    tensors = {
        f"{module}.lora_A.weight": generator.standard_normal((2, 64), np.float32),
        f"{module}.lora_B.weight": generator.standard_normal((192, 2), np.float32),
    }
    save_file(tensors, folder / adapter.WEIGHTS)
    return folder


def stored(tmp_path: Path) -> dict[str, Any]:
    return dict(load_file(tmp_path / "adapter" / adapter.WEIGHTS))


def test_the_formula(base: Path, tmp_path: Path) -> None:
    tensors = load_file(write_adapter(tmp_path / "adapter") / adapter.WEIGHTS)
    a, b = (next(array for name, array in tensors.items() if part in name) for part in ("lora_A", "lora_B"))
    name = "h.0.attn.c_attn.weight"
    expected = load_file(base / "model.safetensors")[f"transformer.{name}"] + 3.0 * (b @ a).T
    checkpoint = merged(base, tmp_path / "work", tmp_path / "adapter")
    np.testing.assert_allclose(checkpoint.tensors[name], expected, atol=1e-5)
    other = "h.1.attn.c_attn.weight"
    np.testing.assert_array_equal(checkpoint.tensors[other], open_checkpoint(str(base), tmp_path).tensors[other])


def test_an_adapter_in_half_precision(base: Path, tmp_path: Path) -> None:
    exact = {
        name: torch.tensor(array) for name, array in load_file(write_adapter(tmp_path / "a") / adapter.WEIGHTS).items()
    }
    rounded = {name: tensor.bfloat16() for name, tensor in exact.items()}
    save_with_torch(rounded, tmp_path / "a" / adapter.WEIGHTS)
    write_adapter(tmp_path / "b")
    save_with_torch({name: tensor.float() for name, tensor in rounded.items()}, tmp_path / "b" / adapter.WEIGHTS)
    first, second = (merged(base, tmp_path / f"work-{name}", tmp_path / name).tensors for name in "ab")
    np.testing.assert_array_equal(first["h.0.attn.c_attn.weight"], second["h.0.attn.c_attn.weight"])


def test_the_model_writes_and_its_card_names_the_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(tmp_path / "poems")
    output = tmp_path / "model"
    typed = [str(base), "--adapter", str(tmp_path / "poems"), *QUICK, "--precision", "fp32", "--output", str(output)]
    build.main(typed)
    assert "adapter: poems, LoRA of rank 2 on attn.c_attn, trained on owner/base" in capsys.readouterr().out
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "with the LoRA adapter `poems` merged into it" in card
    assert "--adapter poems" in card
    assert str(tmp_path) not in card
    expected = torch_logits(open_with_transformers(merged(base, tmp_path / "work", tmp_path / "poems").folder), IDS)
    assert difference(folder_logits(output, IDS), expected) < CLOSE
    assert runtime.generate("A", model=output, max_new_tokens=3)


def without_b(folder: Path) -> None:
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "lora_B" in name])


def another_width(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({n: np.zeros((2, 768), "f4") for n in tensors if "lora_A" in n}))


def another_rank(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({n: np.zeros((3, 64), "f4") for n in tensors if "lora_A" in n}))


def another_layer(folder: Path) -> None:
    edit(folder, lambda tensors: rename(tensors, "h.0.", "h.12."))


def another_family(folder: Path) -> None:
    edit(folder, lambda tensors: rename(tensors, "transformer.h.0.attn.c_attn", "model.layers.0.self_attn.q_proj"))


def a_classifier(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"base_model.model.score.weight": np.zeros((2, 64), "f4")}))


def no_number(folder: Path) -> None:
    edit(folder, lambda tensors: [array.fill(np.nan) for array in tensors.values()])


def nothing(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.clear())


def no_weights(folder: Path) -> None:
    (folder / adapter.WEIGHTS).unlink()


def cut(folder: Path) -> None:
    path = folder / adapter.WEIGHTS
    path.write_bytes(path.read_bytes()[:300])


def rename(tensors: dict[str, Any], old: str, new: str) -> None:
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = dict(load_file(folder / adapter.WEIGHTS))
    change(tensors)
    save_file(tensors, folder / adapter.WEIGHTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_b, "has only one of the two matrices A and B for h.0.attn.c_attn"),
        (
            another_width,
            r"another base model: for h.0.attn.c_attn its matrices are \[2, 768\] and \[192, 2\], .*\[2, 64\]",
        ),
        (another_rank, "h.0.attn.c_attn has rank 3, but adapter_config.json makes it 2"),
        (another_layer, "changes h.12.attn.c_attn, which the base model does not have: it has 3 layers"),
        (another_family, "changes model.layers.0.self_attn.q_proj, which the base model does not have"),
        (a_classifier, "base_model.model.score.weight belongs to nothing that the base model has"),
        (no_number, "lora_A.weight holds NaN or infinity"),
        (nothing, "has no weights that change the model"),
        (no_weights, "adapter_model.safetensors is missing"),
        (cut, "adapter_model.safetensors is damaged or not a safetensors file"),
    ],
)
def test_an_adapter_that_does_not_fit(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    message: str,
) -> None:
    change(write_adapter(tmp_path / "adapter"))
    assert run_here(monkeypatch, base, "--adapter", tmp_path / "adapter", *QUICK, "--output", tmp_path / "model") == 1
    line = error_line(capsys.readouterr().err)
    assert str(tmp_path / "adapter") in line
    assert re.search(message, line)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of the type IA3; only LORA"),
        ({"use_dora": True}, r"is a DoRA adapter \(use_dora\)"),
        ({"trainable_token_indices": [1, 2]}, "uses trainable_token_indices, which is not merged here"),
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"something_new": 3}, "uses something_new"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4', which changes the base"),
        ({"r": 0}, "r is 0; the rank"),
    ],
)
def test_an_adapter_of_another_kind_is_named_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: Settings,
    message: str,
) -> None:
    folder = write_adapter(tmp_path / "adapter", **settings)
    # the base model is never asked for
    assert run_here(monkeypatch, "owner/base", "--adapter", folder, *QUICK, "--output", tmp_path / "model") == 1
    shown = capsys.readouterr()
    assert re.search(message, error_line(shown.err))
    assert shown.out == ""


def test_adapters_that_do_not_go_together(base: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("first", "second")):
        write_adapter(tmp_path / name)
        bias = {"base_model.model.transformer.h.0.attn.c_attn.base_layer.bias": np.full(192, index, np.float32)}
        edit(tmp_path / name, lambda tensors, bias=bias: tensors.update(bias))
    with pytest.raises(ValueError, match=r"do not go together: both change h\.0\.attn\.c_attn\.bias"):
        merged(base, tmp_path / "work", tmp_path / "first", tmp_path / "second")


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing; --adapter names a folder"):
        adapter.read_settings(tmp_path)
