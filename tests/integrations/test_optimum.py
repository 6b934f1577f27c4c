"""optimum and this project open each other's folders and find the same."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, GPT2LMHeadModel

from export.graph import reference
from runtime import generate, load, score_text, stream
from runtime.model.model import Model
from tests.conftest import DEMO
from tests.export.checkpoint.test_variants import (
    VARIANTS,
    add_old_buffers,
    add_output_layer,
    write_stray,
    write_without_prefix,
)
from tests.support.checkpoints import (
    CLOSE,
    build_model,
    difference,
    folder_logits,
    greedy,
    in_passes,
    open_checkpoint,
    relative_error,
    some_ids,
    torch_greedy,
    torch_logits,
    write_checkpoint,
)

PROMPTS = ["Once upon a time there was a little mouse who", "¿Qué tal? The ", "a"]
N_NEW = 110


@pytest.fixture(scope="module")
def oracle() -> GPT2LMHeadModel:
    return open_checkpoint(DEMO)


@pytest.fixture(scope="module")
def dynamic_folder(demo_reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """optimum's export after onnxruntime's own quantization, under the name that optimum's quantizer gives."""
    folder = tmp_path_factory.mktemp("optimum") / "dynamic"
    shutil.copytree(demo_reference_folder, folder, ignore=shutil.ignore_patterns("*.onnx*"))
    source, target = demo_reference_folder / "model.onnx", folder / "model_quantized.onnx"
    quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    return folder


@pytest.fixture(scope="module")
def dynamic(dynamic_folder: Path) -> Iterator[Model]:
    with Model(dynamic_folder) as model:
        yield model


def written(model: Any, folder: Path, prompt: str) -> str:
    """Greedy, by the generate of transformers, to the end of text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # some tokenizers give token types, which GPT-2 would add to its embeddings
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=N_NEW, do_sample=False, pad_token_id=0)[0]
    text: str = tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_optimum_writes_what_we_write_from_our_fp32_folder(
    demo_fp32: Model, oracle: GPT2LMHeadModel, prompt: str
) -> None:
    ours = generate(prompt, model=demo_fp32, max_new_tokens=N_NEW)
    assert len(ours) > 100
    by_optimum = written(ORTModelForCausalLM.from_pretrained(demo_fp32.folder), demo_fp32.folder, prompt)
    assert by_optimum == ours == written(oracle, DEMO, prompt)


@pytest.mark.parametrize("name", ["demo_int8", "demo_int4"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_optimum_writes_what_we_write_from_our_quantized_folders(
    name: str, prompt: str, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(name)
    by_optimum = written(ORTModelForCausalLM.from_pretrained(model.folder), model.folder, prompt)
    # optimum opens the graph with an fp32 cache.
    with load(model.folder, cache="fp32") as exact:
        assert by_optimum == generate(prompt, model=exact, max_new_tokens=N_NEW)


def test_the_runtime_decodes_optimums_own_export(demo_reference: Model, oracle: GPT2LMHeadModel) -> None:
    assert not demo_reference.is_fused
    for prompt in PROMPTS:
        expected = written(oracle, DEMO, prompt)
        assert generate(prompt, model=demo_reference, max_new_tokens=N_NEW) == expected
        assert "".join(stream(prompt, model=demo_reference, max_new_tokens=N_NEW)) == expected
    ids = demo_reference.tokenizer.encode(PROMPTS[0]).ids
    assert torch_greedy(oracle, ids, greedy(demo_reference, ids, 128)) == greedy(demo_reference, ids, 128)


@pytest.mark.parametrize("ends", [[], [1], [30, 31, 60]])
def test_logits_of_optimums_export_are_transformers(
    demo_reference: Model, oracle: GPT2LMHeadModel, ends: list[int]
) -> None:
    ids = some_ids(80, 8192)
    assert difference(in_passes(demo_reference, ids, ends), torch_logits(oracle, ids)) < 1e-4


def test_scores_of_optimums_export_are_transformers(demo_reference: Model, oracle: GPT2LMHeadModel) -> None:
    text = (DEMO / "evaluation.txt").read_text(encoding="utf-8")[:1500]
    score = score_text(text, model=demo_reference)
    with torch.no_grad():
        given = torch.tensor([demo_reference.tokenizer.encode(text).ids])
        loss = oracle(given, labels=given).loss.item()
    assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_runtime_decodes_optimums_export_after_quantize_dynamic(
    dynamic: Model, oracle: GPT2LMHeadModel, demo_int8: Model
) -> None:
    assert [path.name for path in dynamic.folder.glob("*.onnx")] == ["model_quantized.onnx"]
    assert "".join(stream(PROMPTS[0], model=dynamic)) == generate(PROMPTS[0], model=dynamic)
    ids = dynamic.tokenizer.encode((DEMO / "evaluation.txt").read_text(encoding="utf-8")).ids[:300]
    expected = torch_logits(oracle, ids)
    theirs, ours = (relative_error(in_passes(model, ids, []), expected) for model in (dynamic, demo_int8))
    assert 1.3 * ours < theirs < 0.2
    assert math.isfinite(score_text("Once upon a time", model=dynamic).perplexity)


def test_the_folders_tokenizer_gives_what_the_graph_takes(demo_int8: Model) -> None:
    given = AutoTokenizer.from_pretrained(demo_int8.folder)(PROMPTS[0])
    assert set(given) == {"input_ids", "attention_mask"}


def test_an_export_without_past_is_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's tracer warns about every branch on a shape
        main_export(str(tmp_path / "tiny"), output=str(tmp_path / "out"), task="text-generation", do_validation=False)
    shutil.copyfile(tmp_path / "tiny" / "tokenizer.json", tmp_path / "out" / "tokenizer.json")
    with pytest.raises(ValueError, match=r"no input 'past_key_values\.0\.key'.* --task text-generation-with-past"):
        Model(tmp_path / "out")


@pytest.mark.slow
def test_optimums_export_is_the_same_with_and_without_accelerate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "tiny")
    graphs = []
    for name in ("with", "without"):
        monkeypatch.setattr("optimum.exporters.onnx.base.is_accelerate_available", lambda name=name: name == "with")
        reference.export_reference(tmp_path / "tiny", tmp_path / name)
        graphs.append((tmp_path / name / "model.onnx").read_bytes())
    assert graphs[0] == graphs[1]


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "fp16": lambda folder: write_checkpoint(folder, dtype=torch.float16),
    "bf16": lambda folder: write_checkpoint(folder, dtype=torch.bfloat16),
    "fp64": lambda folder: write_checkpoint(folder, dtype=torch.float64),
    "shards": lambda folder: write_checkpoint(folder, max_shard_size="200KB"),
    "without the prefix": write_without_prefix,
    "stray masks": lambda folder: write_stray(folder, add_old_buffers),
    "stray output layer": lambda folder: write_stray(folder, add_output_layer),
    "context of 2,048": lambda folder: write_checkpoint(folder, n_positions=2048),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", [*VARIANTS, *LAYOUTS])
def test_optimums_export_of_a_variant_is_our_fused_graph(tmp_path: Path, variant: str) -> None:
    checkpoint, config = tmp_path / "variant", VARIANTS.get(variant, {})
    LAYOUTS.get(variant, lambda folder: write_checkpoint(folder, **config))(checkpoint)
    reference.export_reference(checkpoint, tmp_path / "reference")
    shutil.copyfile(checkpoint / "tokenizer.json", tmp_path / "reference" / "tokenizer.json")
    ids = some_ids(64, config.get("vocab_size", 300))
    with Model(tmp_path / "reference") as model:
        expected = in_passes(model, ids, [40, 41])
    assert difference(folder_logits(build_model(checkpoint), ids), expected) < CLOSE
    assert np.isfinite(expected).all()
