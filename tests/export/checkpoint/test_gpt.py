"""GPT, the model before GPT-2: post-norm blocks and a lower-casing tokenizer, against transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, OpenAIGPTConfig, OpenAIGPTLMHeadModel

import runtime
from export import build
from export.checkpoint import config as config_file
from export.checkpoint import tokenizer as tokenizer_file
from export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from export.checkpoint.config import Config
from export.graph import graph
from export.quantize.equalization import OUTPUT, Equalization, EqualizedTensors, can_scale, can_shift, from_weights
from export.quantize.precision import Float32
from runtime.cli import parser as cli
from runtime.diagnostics.check import check_folder
from runtime.graph.architecture import GPT, as_gpt2, read_architecture
from runtime.model.model import Model
from runtime.model.tokenizer.detokenizer import Detokenizer
from runtime.scoring.perplexity import measure_rolling
from tests.conftest import DEMO
from tests.support.checkpoints import (
    CLOSE,
    Floats,
    build_model,
    change_config,
    difference,
    edit_weights,
    folder_logits,
    greedy,
    in_passes,
    in_steps,
    relative_error,
    some_ids,
)
from tests.support.optional import optional

TINY: dict[str, Any] = {"vocab_size": 300, "n_positions": 96, "n_embd": 64, "n_layer": 3, "n_head": 4}
TEXT = (DEMO / "evaluation.txt").read_text(encoding="utf-8")[:20_000]


def write_vocabulary(folder: Path, vocab_size: int = TINY["vocab_size"]) -> None:
    """vocab.json and merges.txt of a small vocabulary of this kind, as OpenAI's own files are."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.model.save(str(folder))


def write_gpt(folder: Path, *, dtype: torch.dtype = torch.float32, **config: Any) -> OpenAIGPTLMHeadModel:
    """Save a random GPT, TINY but for `config`; returns it as transformers opens it."""
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**TINY | config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(0.3 * noise + float("ln_" in name and name.endswith("weight")))
            else:
                weight.copy_(noise * (0.5 if "_embed" in name else weight.shape[0] ** -0.5))
    model.to(dtype).save_pretrained(folder)
    write_vocabulary(folder)
    return open_gpt(folder)


def open_gpt(folder: Path) -> OpenAIGPTLMHeadModel:
    """The oracle."""
    return OpenAIGPTLMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


def gpt_logits(oracle: OpenAIGPTLMHeadModel, ids: list[int]) -> Floats:
    """[len(ids), n_vocab], by transformers."""
    with torch.no_grad():
        logits: Floats = oracle(torch.tensor([ids])).logits[0].numpy()
    return logits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt") / "tiny"
    write_gpt(folder, tie_word_embeddings=False)  # tied and random, it only repeats its last token
    (folder / "evaluation.txt").write_text(TEXT[:3000], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> OpenAIGPTLMHeadModel:
    return open_gpt(checkpoint)


@pytest.fixture(scope="module")
def fp32(checkpoint: Path) -> Iterator[Model]:
    with Model(build_model(checkpoint), threads=1) as model:
        yield model


# the graph -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [[], [1], [80], [17, 18, 60]])
def test_logits_are_transformers_whatever_the_passes(
    fp32: Model, oracle: OpenAIGPTLMHeadModel, ends: list[int]
) -> None:
    ids = some_ids(96)
    assert difference(in_passes(fp32, ids, ends), gpt_logits(oracle, ids)) < CLOSE


def test_logits_token_by_token_are_transformers(fp32: Model, oracle: OpenAIGPTLMHeadModel) -> None:
    ids = some_ids(96)
    assert difference(in_steps(fp32, ids), gpt_logits(oracle, ids)) < CLOSE


def test_greedy_ids_are_transformers_to_the_end_of_the_context(fp32: Model, oracle: OpenAIGPTLMHeadModel) -> None:
    ids = greedy(fp32, [7], 95)
    assert len(set(ids)) > 4
    assert ids == gpt_logits(oracle, [7, *ids[:-1]]).argmax(-1).tolist()
    expected = oracle.generate(torch.tensor([[7]]), max_length=96, do_sample=False, use_cache=False, pad_token_id=0)
    assert [7, *ids] == expected[0].tolist()


VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "one layer": {"n_layer": 1},
    "one layer, untied": {"n_layer": 1, "tie_word_embeddings": False},
    "wide epsilon": {"layer_norm_epsilon": 1e-2},
    "head size 8": {"n_head": 8},
    **{f"afn {name}": {"afn": name} for name in ("gelu", "relu", "silu", "swish")},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_transformers(tmp_path: Path, variant: str) -> None:
    oracle, ids = write_gpt(tmp_path / "variant", **VARIANTS[variant]), some_ids(64)
    assert difference(folder_logits(build_model(tmp_path / "variant"), ids), gpt_logits(oracle, ids)) < CLOSE


def test_the_tolerance_tells_activations_and_norms_apart(checkpoint: Path, tmp_path: Path) -> None:
    ids = some_ids(64)
    expected = gpt_logits(open_gpt(checkpoint), ids)
    write_gpt(tmp_path / "silu", tie_word_embeddings=False, afn="silu")
    write_gpt(tmp_path / "epsilon", tie_word_embeddings=False, layer_norm_epsilon=1e-2)
    for name in ("silu", "epsilon"):
        assert difference(gpt_logits(open_gpt(tmp_path / name), ids), expected) > 10 * CLOSE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_of_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    oracle, ids = write_gpt(tmp_path / "stored", dtype=dtype), some_ids(64)
    assert difference(folder_logits(build_model(tmp_path / "stored"), ids), gpt_logits(oracle, ids)) < CLOSE


def test_a_checkpoint_as_openai_published_it(tmp_path: Path) -> None:
    """Without the prefix, with the buffers of older versions, and with the keys of its time."""
    folder = tmp_path / "published"
    oracle, ids = write_gpt(folder), some_ids(64)
    weights = {
        name.removeprefix("transformer."): value for name, value in load_file(folder / "model.safetensors").items()
    }
    for layer in range(TINY["n_layer"]):
        weights[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 96, 96), np.float32))
    weights["position_ids"] = np.arange(96)
    weights["lm_head.weight"] = weights["tokens_embed.weight"].copy()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, n_ctx=96, n_special=0, predict_special_tokens=True)
    assert difference(folder_logits(build_model(folder), ids), gpt_logits(oracle, ids)) < CLOSE


@pytest.mark.parametrize(
    ("precision", "block_size", "bound"), [("int8", 32, 0.03), ("int8", None, 0.04), ("int4", 32, 0.2)]
)
def test_quantized_logits_are_near_transformers(
    checkpoint: Path, oracle: OpenAIGPTLMHeadModel, precision: str, block_size: int | None, bound: float
) -> None:
    ids = some_ids(64)
    model = build_model(checkpoint, precision, block_size)
    assert relative_error(folder_logits(model, ids), gpt_logits(oracle, ids)) < bound


def test_int8_rows_do_not_depend_on_each_other(checkpoint: Path) -> None:
    rows = [some_ids(n, seed=n) for n in (9, 30, 17)]
    with Model(build_model(checkpoint, "int8"), threads=1) as model:
        together = model.new_cache(40, len(rows))
        for at, row in enumerate(rows):
            together.extend(row, row=at)
        logits = np.copy(together.step([1, 2, 3]))
        for at, row in enumerate(rows):
            alone = model.new_cache(40)
            alone.extend(row)
            assert (alone.step([at + 1])[0] == logits[at]).all()


def test_no_norm_precedes_the_first_layer_or_follows_the_last(fp32: Model) -> None:
    nodes = onnx.load(fp32.folder / "model.onnx", load_external_data=False).graph.node
    norms = [node.output[0] for node in nodes if node.op_type == "LayerNormalization"]
    assert norms == [f"h.{layer}.ln_{n}.out" for layer in range(3) for n in (1, 2)]


def test_a_graph_of_the_other_kind_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = build_model(checkpoint, into=tmp_path)
    change_config(folder, model_type="gpt2", n_inner=None, activation_function="gelu_new")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(runtime.ModelFolderError, match=r"is not the graph that config\.json describes"):
        Model(folder)


def test_adapters_are_merged_as_peft_merges_them(checkpoint: Path, tmp_path: Path) -> None:
    peft = optional("peft")
    products = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    lora = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=products, fan_in_fan_out=True)
    wrapped = peft.get_peft_model(open_gpt(checkpoint), lora).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(tmp_path / "adapter")
    built = tmp_path / "merged"
    adapter = ["--adapter", str(tmp_path / "adapter"), "--precision", "fp32"]
    build.main([str(checkpoint), *adapter, "--no-reference", "--verify", "none", "--output", str(built)])
    ids = some_ids(64)
    expected = gpt_logits(wrapped.merge_and_unload(), ids)
    assert difference(expected, gpt_logits(open_gpt(checkpoint), ids)) > 0.1
    assert difference(folder_logits(built, ids), expected) < CLOSE


def test_an_adapter_of_the_embeddings_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    peft = optional("peft")
    lora = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["tokens_embed"])
    peft.get_peft_model(open_gpt(checkpoint), lora).save_pretrained(tmp_path / "adapter")
    (tmp_path / "work").mkdir()
    with pytest.raises(ValueError, match="changes tokens_embed, which the base model does not have"):
        open_checkpoint(str(checkpoint), tmp_path / "work", adapters=[tmp_path / "adapter"])


# equalization --------------------------------------------------------------------------------------------------------


def any_changes(config: Config) -> dict[str, Equalization]:
    """A change of every product that has one, far from none."""
    noise = np.random.default_rng(3)
    changes = {}
    names = [name.removesuffix(".weight") for name, shape in config.tensor_shapes().items() if "h." in name]
    for name in dict.fromkeys([*(name for name in names if ".ln_" not in name and not name.endswith("bias")), OUTPUT]):
        n_in = config.inner_size if name.endswith("mlp.c_proj") else config.n_embd
        if can_scale(name, config.activation_function, is_post_norm=True):
            shift = noise.standard_normal(n_in) * can_shift(name, is_post_norm=True)
            scale = np.exp(noise.standard_normal(n_in))
            changes[name] = Equalization(scale.astype(np.float32), shift.astype(np.float32))
    return changes


def equalized_logits(opened: Checkpoint, changes: dict[str, Equalization], built: Path, ids: list[int]) -> Floats:
    """Of the model folder `built`, with its graph written again from equalized weights."""
    for name in ("model.onnx", "model.onnx_data", "SHA256SUMS"):
        (built / name).unlink()
    graph.build(opened.config, EqualizedTensors(opened.config, opened.tensors, changes), Float32(), built)
    return folder_logits(built, ids)


@pytest.mark.parametrize("config", [{"afn": "gelu"}, {"afn": "relu"}, {"tie_word_embeddings": False}], ids=str)
@pytest.mark.parametrize("kind", ["any", "guess"])
def test_equalization_does_not_change_the_function(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    oracle, ids = write_gpt(tmp_path / "tiny", **config), some_ids(64)
    opened = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    changes = any_changes(opened.config) if kind == "any" else from_weights(opened.config, opened.tensors)
    expected = {f"h.{layer}.attn.c_proj" for layer in range(3)} | {OUTPUT}
    if kind == "any" and config.get("afn") == "relu":
        expected |= {f"h.{layer}.mlp.c_proj" for layer in range(3)}
    assert changes.keys() == expected
    logits = equalized_logits(opened, changes, build_model(tmp_path / "tiny"), ids)
    assert difference(logits, gpt_logits(oracle, ids)) < 5 * CLOSE


# configuration -------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": GPT}), encoding="utf-8")
    config, _ = config_file.read(tmp_path / "config.json")
    theirs = OpenAIGPTConfig()
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "layer_norm_epsilon", "tie_word_embeddings")
    assert [getattr(config, name) for name in sizes] == [getattr(theirs, name) for name in sizes]
    assert (config.bos_token_id, config.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id) == (None, None)
    assert config.activation_function == "gelu_new"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"afn": "tanh"}, "afn is 'tanh'; gelu, relu, silu, swish are allowed"),
        ({"afn": 1}, "afn is 1; gelu"),
        ({"n_inner": 32}, "n_inner is 32; an openai-gpt model has no such setting"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; an openai-gpt model"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False; an openai-gpt model"),
    ],
)
def test_settings_that_a_gpt_cannot_have_are_refused(
    checkpoint: Path, changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    raw = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")) | changes
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    for read in (lambda: config_file.read(tmp_path / "config.json"), lambda: read_architecture(tmp_path)):
        with pytest.raises(ValueError, match=f"config.json: {told}"):
            read()


def test_what_a_gpt2_says_stays_as_it_is() -> None:
    assert as_gpt2({"model_type": "gpt2", "afn": "nothing", "n_inner": 3}) == {
        "model_type": "gpt2",
        "afn": "nothing",
        "n_inner": 3,
    }


def test_tensors_of_a_gpt2_are_refused(tmp_path: Path) -> None:
    write_gpt(tmp_path / "mixed")
    edit_weights(
        tmp_path / "mixed", lambda weights: weights.update({"transformer.ln_f.weight": np.ones(64, np.float32)})
    )
    with pytest.raises(ValueError, match=r"would be lost: ln_f\.weight"):
        open_checkpoint(str(tmp_path / "mixed"), tmp_path)


# the tokenizer -------------------------------------------------------------------------------------------------------


def theirs(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(folder)


@given(text=st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_ids_are_transformers(checkpoint: Path, text: str) -> None:
    ours = _tokenizers(checkpoint)[0]
    assert ours.encode(text, add_special_tokens=False).ids == _tokenizers(checkpoint)[1](text).input_ids


_OPENED: dict[Path, tuple[Tokenizer, Any]] = {}


def _tokenizers(folder: Path) -> tuple[Tokenizer, Any]:
    if folder not in _OPENED:
        _OPENED[folder] = tokenizer_file.read(folder), theirs(folder)
    return _OPENED[folder]


@pytest.mark.parametrize("named", [None, "OpenAIGPTTokenizer", "OpenAIGPTTokenizerFast"])
def test_the_tokenizer_of_older_files_is_transformers(tmp_path: Path, named: str | None) -> None:
    folder = tmp_path / "older"
    write_gpt(folder)
    if named:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}), encoding="utf-8")
    fast = theirs(folder)
    assert type(fast).__name__ == "OpenAIGPTTokenizerFast"
    assert tokenizer_file.read(folder).to_str() == fast.backend_tokenizer.to_str()


def test_the_model_folder_opens_in_transformers_with_the_same_tokenizer(fp32: Model) -> None:
    opened = theirs(fp32.folder)
    text = "Once upon a time, there was a Mouse!"
    assert type(opened).__name__ == "OpenAIGPTTokenizerFast"
    assert opened(text).input_ids == fp32.tokenizer.encode(text).ids
    assert opened.model_max_length == 96


def test_text_comes_back_in_lower_case_with_spaces_around_punctuation(fp32: Model) -> None:
    ids = fp32.tokenizer.encode("Hello, you!").ids
    assert Detokenizer(fp32.tokenizer).decode(ids) == theirs(fp32.folder).decode(
        ids, clean_up_tokenization_spaces=False
    )
    assert Detokenizer(fp32.tokenizer).decode(ids) == "hello , you !"


def test_a_tokenizer_json_is_taken_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    theirs(checkpoint).save_pretrained(tmp_path / "saved")
    write_gpt(tmp_path / "gpt")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "gpt" / name).unlink()
    (tmp_path / "saved" / "tokenizer.json").rename(tmp_path / "gpt" / "tokenizer.json")
    with Model(build_model(tmp_path / "gpt")) as model:
        assert model.tokenizer.to_str() == _tokenizers(checkpoint)[0].to_str()


# use -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole build: calibrated, verified against the fused fp32 graph, with golden outputs."""
    target = tmp_path_factory.mktemp("built") / "gpt-int8"
    build.main([str(checkpoint), "--max-kl", "1", "--max-loss", "50", "--output", str(target)])
    return target


def test_the_whole_build_verifies_and_records(int8: Path) -> None:
    quality = json.loads((int8 / "quality.json").read_text(encoding="utf-8"))
    assert quality["verified"]
    assert quality["calibrated"]
    assert quality["reference"] == "the fused fp32 graph"
    assert quality["mean_kl"] < 0.05
    golden = json.loads((int8 / "golden.json").read_text(encoding="utf-8"))
    assert [len(record["ids"]) for record in golden["records"]] == [24] * 4
    assert check_folder(int8, threads=1).passed
    card = (int8 / "README.md").read_text(encoding="utf-8")
    assert "GPT as one fused ONNX graph" in card
    assert "tags: [openai-gpt, onnx, int8]" in card
    assert "where the fused fp32 graph has" in card


def test_int4_builds_with_calibration(checkpoint: Path, oracle: OpenAIGPTLMHeadModel, tmp_path: Path) -> None:
    build.main([str(checkpoint), "--precision", "int4", "--verify", "none", "--output", str(tmp_path / "int4")])
    ids = some_ids(64)
    assert relative_error(folder_logits(tmp_path / "int4", ids), gpt_logits(oracle, ids)) < 0.2


def test_optimums_export_cannot_be_kept(checkpoint: Path, tmp_path: Path) -> None:
    kept = ["--keep-reference", str(tmp_path / "kept"), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="optimum exports no openai-gpt model"):
        build.main([str(checkpoint), *kept])


def test_text_continues_in_lower_case_words(fp32: Model, oracle: OpenAIGPTLMHeadModel) -> None:
    """Text and ids are what transformers generates and decodes, streamed or whole."""
    prompt, fast = "Once upon a time, there was a mouse", theirs(fp32.folder)
    ids = fast(prompt, return_tensors="pt").input_ids
    expected = oracle.generate(ids, max_new_tokens=40, do_sample=False, use_cache=False, pad_token_id=0)[0]
    [completion] = runtime.complete([prompt], model=fp32, max_new_tokens=40, temperature=0.0)
    assert list(completion.ids) == expected[ids.shape[1] :].tolist()
    whole = fast.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    beginning = fast.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert whole == beginning + completion.text
    assert "".join(runtime.stream(prompt, model=fp32, max_new_tokens=40, temperature=0.0)) == completion.text
    assert completion.finish_reason == "length"


# no token begins or ends a text -------------------------------------------------------------------------------------


def torch_logprobs(oracle: OpenAIGPTLMHeadModel, ids: list[int]) -> list[float]:
    """Of every id but the first."""
    logprobs = torch.log_softmax(torch.from_numpy(gpt_logits(oracle, ids)[:-1]).double(), -1)
    found: list[float] = logprobs[torch.arange(len(ids) - 1), ids[1:]].tolist()
    return found


def test_an_empty_prompt_or_context_is_refused(fp32: Model) -> None:
    told = "the prompt or context has no tokens, and this model has no beginning-of-text token"
    with pytest.raises(ValueError, match=told):
        runtime.generate("", model=fp32)
    with pytest.raises(ValueError, match=told):
        runtime.score("a mouse", model=fp32)
    with pytest.raises(ValueError, match=told):
        runtime.generate(" \n", model=fp32)


def test_structured_output_is_refused(fp32: Model) -> None:
    with pytest.raises(ValueError, match="choices, regex and json_schema need byte-level BPE"):
        runtime.generate("Once upon a time", model=fp32, choices=["yes", "no"])


def test_scores_are_transformers(fp32: Model, oracle: OpenAIGPTLMHeadModel) -> None:
    ids = fp32.tokenizer.encode("Once upon a time there was a mouse.").ids
    expected = torch_logprobs(oracle, ids)
    scored = runtime.score_text("Once upon a time there was a mouse.", model=fp32)
    np.testing.assert_allclose(scored.logprob, sum(expected), rtol=1e-5)
    found = runtime.surprisal("Once upon a time there was a mouse.", model=fp32, bos=False)
    assert found.tokens[0].surprisal is None
    bits = [token.surprisal for token in found.tokens[1:]]
    np.testing.assert_allclose(bits, -np.array(expected) / np.log(2), rtol=1e-4)
    assert [word.text for word in found.words] == ["Once", "upon", "a", "time", "there", "was", "a", "mouse."]


def test_surprisal_asks_for_bos_false(fp32: Model) -> None:
    with pytest.raises(ValueError, match=r"no beginning-of-text token .*bos=False"):
        runtime.surprisal("Once upon a time", model=fp32)


def test_the_first_token_of_a_rolling_text_is_not_predicted(fp32: Model, oracle: OpenAIGPTLMHeadModel) -> None:
    texts = ["Once upon a time.", "", "There was a king"]
    sequences = [fp32.tokenizer.encode(text).ids for text in texts]
    expected = sum(sum(torch_logprobs(oracle, ids)) for ids in sequences if ids)
    found = measure_rolling(fp32, texts)
    np.testing.assert_allclose(found.logprob, expected, rtol=1e-5)
    assert found.n_tokens == sum(max(0, len(ids) - 1) for ids in sequences)


@pytest.mark.parametrize("texts", [[""], ["a"], ["a", "", "b"]])
def test_rolling_needs_a_token_to_predict(fp32: Model, texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no text to measure: this model has no .* two tokens are needed"):
        measure_rolling(fp32, texts)


def test_commands(
    int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPT2_EDGE_MODEL", str(int8))
    prompt = "Once upon a time"
    with Model(int8, threads=1) as model:
        expected = runtime.generate(prompt, model=model, max_new_tokens=8)
    assert cli.main(["generate", prompt, "--max-new-tokens=8"]) == 0
    assert capsys.readouterr().out == f"{expected}\n"
    assert cli.main(["generate", ""]) != 0
    assert "no beginning-of-text token" in capsys.readouterr().err
    text = tmp_path / "text.txt"
    text.write_text(prompt, encoding="utf-8")
    for command in (["check"], ["info"], ["score", prompt], ["surprisal", "--no-bos", str(text)]):
        assert cli.main(command) == 0, command


def test_the_server_completes(fp32: Model) -> None:
    serving = pytest.importorskip("tests.support.serving")
    prompt = "Once upon a time"
    [expected] = runtime.complete([prompt], model=fp32, max_new_tokens=12)
    with serving.running(fp32) as server:
        reply = server.post(prompt=prompt, max_tokens=12, temperature=0)
        assert (reply.status, reply.json["choices"][0]["text"]) == (200, expected.text)
        refused = server.post(prompt="", max_tokens=4)
        assert refused.status == 400
        assert "no beginning-of-text token" in refused.error["message"]


def test_transformers_opens_the_folder_config(fp32: Model) -> None:
    config = AutoModelForCausalLM.from_config(OpenAIGPTConfig.from_pretrained(fp32.folder)).config
    assert (config.model_type, config.n_positions, config.vocab_size) == (GPT, 96, 300)
