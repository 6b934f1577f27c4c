"""Stressed checkpoints against transformers: the same function in fp32, and outliers where they are said to be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from tests.conftest import DEMO
from tests.support import outliers
from tests.support.checkpoints import TINY, difference, open_checkpoint, some_ids, torch_logits, write_checkpoint

EXACT = 1e-4  # of the spread of the logits
EVERYWHERE = ("ln_1", "ln_2", "value", "ln_f")
IDS = some_ids(60)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outliers") / "source"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outliers") / "relu"
    write_checkpoint(folder, activation_function="relu")
    return folder


@contextmanager
def watching_inputs(model: GPT2LMHeadModel) -> Iterator[dict[str, NDArray[Any]]]:
    """The inputs [n_ids, n_in] of each product by its name, filled as the model runs."""
    seen: dict[str, NDArray[Any]] = {}

    def note(name: str) -> Any:
        return lambda _module, inputs: seen.update({name: inputs[0].detach()[0].numpy()})

    named = {name.removeprefix("transformer."): module for name, module in model.named_modules()}
    products = {n: m for n, m in named.items() if n.endswith(("c_attn", "c_fc", "c_proj", "lm_head"))}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in products.items()]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("factor", [10, 30, 100])
@pytest.mark.parametrize("places", [*((place,) for place in EVERYWHERE), EVERYWHERE])
def test_function_is_the_same_in_fp32(source: Path, tmp_path: Path, places: tuple[str, ...], factor: float) -> None:
    outliers.write(source, tmp_path / "target", factor=factor, channels=6, places=places)
    logits = torch_logits(open_checkpoint(tmp_path / "target"), IDS)
    assert difference(logits, torch_logits(open_checkpoint(source), IDS)) < EXACT


@pytest.mark.parametrize("places", [("hidden",), (*EVERYWHERE, "hidden")])
def test_function_of_a_relu_model_is_the_same(relu: Path, tmp_path: Path, places: tuple[str, ...]) -> None:
    outliers.write(relu, tmp_path / "target", factor=100, channels=6, places=places)
    logits = torch_logits(open_checkpoint(tmp_path / "target"), IDS)
    assert difference(logits, torch_logits(open_checkpoint(relu), IDS)) < EXACT


@pytest.mark.parametrize("channels", [1, 6])
def test_inputs_of_products_have_the_outliers(relu: Path, tmp_path: Path, channels: int) -> None:
    places = (*EVERYWHERE, "hidden")
    found = outliers.write(relu, tmp_path / "target", factor=30, channels=channels, places=places)
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert set(found) == {*(f"h.{layer}.{kind}" for layer in range(TINY["n_layer"]) for kind in kinds), "lm_head"}
    inputs = []
    for folder in (relu, tmp_path / "target"):
        model = open_checkpoint(folder)
        with watching_inputs(model) as seen:
            torch_logits(model, IDS)
        inputs.append(seen)
    for name, outlying in found.items():
        before, after = (np.abs(seen[name]).max(0) for seen in inputs)
        expected = np.ones(len(before))
        expected[outlying] = 30
        assert len(outlying) == channels
        assert np.allclose(after, expected * before, rtol=1e-3, atol=1e-4 * before.max()), name


def test_only_the_places_asked_for_change(source: Path, tmp_path: Path) -> None:
    outliers.write(source, tmp_path / "target", factor=30, channels=2, places={"ln_2"})
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "target"))
    assert set(before) == set(after)
    changed = {name.split(".", 3)[3] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"ln_2.weight", "ln_2.bias", "mlp.c_fc.weight"}


def test_final_norm_unties_the_output_layer(source: Path, tmp_path: Path) -> None:
    outliers.write(source, tmp_path / "target", factor=30, channels=2, places={"ln_f"})
    config = json.loads((tmp_path / "target" / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(tmp_path / "target" / "model.safetensors")
    assert config["tie_word_embeddings"] is False
    assert tensors["lm_head.weight"].shape == (TINY["vocab_size"], TINY["n_embd"])
    assert np.array_equal(
        tensors["transformer.wte.weight"], load_file(source / "model.safetensors")["transformer.wte.weight"]
    )


def test_names_without_a_prefix_and_half_precision(source: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    outliers.write(source, plain, factor=1, channels=1, places=())
    stored = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(plain / "model.safetensors").items()
    }
    save_file({name: tensor.astype("bfloat16") for name, tensor in stored.items()}, plain / "model.safetensors")
    outliers.write(plain, tmp_path / "target", factor=30, channels=6, places=EVERYWHERE)
    target = load_file(tmp_path / "target" / "model.safetensors")
    assert all(tensor.dtype == np.float32 for tensor in target.values())
    logits = torch_logits(open_checkpoint(tmp_path / "target"), IDS)
    assert difference(logits, torch_logits(open_checkpoint(plain), IDS)) < EXACT


def test_channels_depend_on_the_seed_alone(source: Path, tmp_path: Path) -> None:
    both = outliers.write(source, tmp_path / "both", factor=30, channels=3, places={"ln_1", "value"})
    alone = outliers.write(source, tmp_path / "alone", factor=10, channels=3, places={"value"})
    other = outliers.write(source, tmp_path / "other", factor=10, channels=3, places={"value"}, seed=1)
    assert alone == {name: channels for name, channels in both.items() if name.endswith("c_proj")}
    assert alone != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0}, "factor is 0"),
        ({"factor": float("nan")}, "factor is nan"),
        ({"channels": 65}, "channels is 65"),
        ({"places": ("ln_3",)}, "places has ln_3"),
        ({"places": ("hidden",)}, "hidden wants a relu model; activation_function is 'gelu_new'"),
    ],
)
def test_impossible_stress_is_refused(source: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outliers.write(source, tmp_path / "target", **{"factor": 30, "channels": 2, "places": ("ln_1",), **changes})
    assert not (tmp_path / "target").exists()


def demo_ids() -> list[int]:
    text = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
    return Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids  # type: ignore[no-any-return]


def perplexity(folder: Path, n_windows: int = 4) -> float:
    """Of the demo's text, by transformers, in windows of its context."""
    model = open_checkpoint(folder)
    size = model.config.n_positions
    rows = torch.tensor(demo_ids()[: n_windows * size]).view(n_windows, size)
    with torch.no_grad():
        logprobs = model(rows).logits[:, :-1].log_softmax(-1)
    return float((-logprobs.gather(-1, rows[:, 1:, None]).mean()).exp())


def test_first_position_is_large_and_the_model_still_models(tmp_path: Path) -> None:
    found = outliers.write_large_first(DEMO, tmp_path / "target")
    model = open_checkpoint(tmp_path / "target")
    with torch.no_grad():
        rows = torch.tensor([demo_ids()[:256]])
        residual = model(rows, output_hidden_states=True).hidden_states[0][0]
    typical = float(residual[1:].square().mean().sqrt())
    assert len(found["wpe"]) == 2
    assert all(80 < float(residual[0, channel].abs()) / typical < 125 for channel in found["wpe"])
    assert perplexity(tmp_path / "target") < 1.5 * perplexity(DEMO)


def test_relu_variant_models_text(tmp_path: Path) -> None:
    outliers.write_relu(DEMO, tmp_path / "relu")
    config = json.loads((tmp_path / "relu" / "config.json").read_text(encoding="utf-8"))
    assert config["activation_function"] == "relu"
    assert perplexity(tmp_path / "relu") < 1.2 * perplexity(DEMO)
    outliers.write(tmp_path / "relu", tmp_path / "stressed", factor=30, channels=6, places=("hidden",))
    ids = demo_ids()[:128]
    logits = torch_logits(open_checkpoint(tmp_path / "stressed"), ids)
    assert difference(logits, torch_logits(open_checkpoint(tmp_path / "relu"), ids)) < EXACT
