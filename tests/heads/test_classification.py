"""Classifiers are transformers', at fp32 to the order of sums, at int8 and int4 in their labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimum.onnxruntime import ORTModelForSequenceClassification, ORTModelForTokenClassification
from transformers import AutoTokenizer, OpenAIGPTConfig, OpenAIGPTForSequenceClassification, pipeline

import runtime
from runtime.diagnostics.check import check_folder
from runtime.diagnostics.info import describe
from runtime.graph.head import Head
from runtime.heads.classification import TokenClassification, label_logits
from runtime.model.model import Model
from tests.export.checkpoint.test_gpt import write_vocabulary
from tests.support.checkpoints import TINY, build_model, change_config, randomize, relative_error, some_ids
from tests.support.classifiers import LABELS, PAD, TAGS, torch_labels, write_classifier, write_tagger
from tests.support.damaging import list_again

CLOSE = 1e-4
ROWS = [some_ids(n, 299, seed=n) for n in (1, 5, 96, 17, 2, 30)]
PADDED = [[5, 6, PAD, PAD], [PAD, 7, PAD], [PAD, PAD], [PAD]]
TEXTS = ["The old king slept.", "A bird sang in the tree, and the king woke up.", "No!", "¿Qué?"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def oracle(place: Path) -> Any:
    return write_classifier(place / "texts")


@pytest.fixture(scope="module")
def tag_oracle(place: Path) -> Any:
    return write_tagger(place / "tokens")


@pytest.fixture(scope="module")
def texts_fp32(place: Path, oracle: Any) -> Iterator[Model]:
    with Model(build_model(place / "texts"), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def texts_int8(place: Path, oracle: Any) -> Iterator[Model]:
    with Model(build_model(place / "texts", "int8"), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def tokens_fp32(place: Path, tag_oracle: Any) -> Iterator[Model]:
    with Model(build_model(place / "tokens"), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def tokens_int8(place: Path, tag_oracle: Any) -> Iterator[Model]:
    with Model(build_model(place / "tokens", "int8", 32), threads=1) as model:
        yield model


def check_logits(model: Model, oracle: Any, rows: list[list[int]], bound: float = CLOSE) -> None:
    for ids, found in zip(rows, label_logits(model, rows), strict=True):
        assert found.shape == torch_labels(oracle, ids).shape
        assert np.abs(found - torch_labels(oracle, ids)).max() < bound


def test_logits_of_texts_are_transformers(texts_fp32: Model, oracle: Any) -> None:
    check_logits(texts_fp32, oracle, ROWS + PADDED)


def test_logits_of_tokens_are_transformers(tokens_fp32: Model, tag_oracle: Any) -> None:
    check_logits(tokens_fp32, tag_oracle, ROWS)


def test_a_batch_of_transformers_pads_as_ours(texts_fp32: Model, oracle: Any) -> None:
    ids = torch.tensor([row + [PAD] * (30 - len(row)) for row in (ROWS[1], ROWS[3], ROWS[5])])
    with torch.no_grad():
        expected = oracle(ids, attention_mask=(ids != PAD).long()).logits.numpy()
    found = label_logits(texts_fp32, [ROWS[1], ROWS[3], ROWS[5]])
    assert np.abs(np.stack(found) - expected).max() < CLOSE


VARIANTS: dict[str, dict[str, Any]] = {
    "no pad token": {"pad_token_id": None},
    "pad token outside the vocabulary": {"pad_token_id": 5000},
    "one layer": {"n_layer": 1},
    "untied": {"tie_word_embeddings": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "vocab_size": 300},
    "relu, two labels": {"activation_function": "relu", "labels": ("no", "yes")},
    "forty labels": {"labels": [f"label {n}" for n in range(40)]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_transformers(tmp_path: Path, variant: str) -> None:
    oracle = write_classifier(tmp_path / "variant", **VARIANTS[variant])
    with Model(build_model(tmp_path / "variant"), threads=1) as model:
        check_logits(model, oracle, [*ROWS, [5, 6, PAD]])


def test_a_gpt_labels_as_transformers(tmp_path: Path) -> None:
    sizes = {key: TINY[key] for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    folder = tmp_path / "gpt"
    config = OpenAIGPTConfig(**sizes, id2label=dict(enumerate(LABELS)), label2id={}, pad_token_id=PAD)
    model = OpenAIGPTForSequenceClassification(config)
    randomize(model)
    model.save_pretrained(folder)
    write_vocabulary(folder)
    oracle = OpenAIGPTForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with Model(build_model(folder), threads=1) as opened:
        check_logits(opened, oracle, ROWS + PADDED[:2])


@pytest.mark.parametrize(
    ("precision", "block_size", "bound"), [("int8", 64, 0.05), ("int8", None, 0.06), ("int4", 32, 0.4)]
)
def test_quantized_logits_are_near(
    place: Path, oracle: Any, precision: str, block_size: int | None, bound: float
) -> None:
    with Model(build_model(place / "texts", precision, block_size, into=place / "quantized"), threads=1) as model:
        found = np.stack(label_logits(model, ROWS))
    expected = np.stack([torch_labels(oracle, ids) for ids in ROWS])
    assert relative_error(found, expected) < bound


@pytest.mark.parametrize("name", ["texts_int8", "tokens_int8", "texts_fp32"])
@settings(deadline=None, max_examples=20)
@given(rows=st.lists(st.integers(1, 40).map(lambda n: some_ids(n, seed=n)), min_size=1, max_size=12))
def test_the_batch_does_not_change_a_label(name: str, rows: list[list[int]], request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    for ids, found in zip(rows, label_logits(model, rows), strict=True):
        assert np.array_equal(label_logits(model, [ids])[0], found)


# what runtime.classify returns ---------------------------------------------------------------------------------------


def pipeline_of(folder: Path, task: Any, oracle: Any, **options: Any) -> Any:
    return pipeline(task, model=oracle, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu", **options)


def test_scores_are_those_of_transformers_pipeline(texts_fp32: Model, place: Path, oracle: Any) -> None:
    expected = pipeline_of(place / "texts", "text-classification", oracle, top_k=None)(TEXTS)
    for found, one in zip(runtime.classify(TEXTS, model=texts_fp32), expected, strict=True):
        assert isinstance(found, runtime.heads.classification.Classification)
        assert found.scores == pytest.approx({each["label"]: each["score"] for each in one}, abs=CLOSE)
        assert (found.label, found.score) == (one[0]["label"], pytest.approx(one[0]["score"], abs=CLOSE))
        assert list(found.scores) == list(LABELS)
        assert sum(found.scores.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [("multi_label_classification", LABELS), ("regression", ("mood",)), ("regression", ("a", "b")), (None, ("only",))],
)
def test_other_problems_have_the_scores_of_the_pipeline(tmp_path: Path, problem: str | None, labels: Any) -> None:
    oracle = write_classifier(tmp_path / "other", labels=labels, problem_type=problem)
    expected = pipeline_of(tmp_path / "other", "text-classification", oracle, top_k=None)(TEXTS)
    with Model(build_model(tmp_path / "other"), threads=1) as model:
        for found, one in zip(runtime.classify(TEXTS, model=model), expected, strict=True):
            assert found.scores == pytest.approx({each["label"]: each["score"] for each in one}, abs=CLOSE)


def test_spans_are_those_of_transformers_pipeline(tokens_fp32: Model, place: Path, tag_oracle: Any) -> None:
    plain = pipeline_of(place / "tokens", "token-classification", tag_oracle, ignore_labels=[])
    simple = pipeline_of(place / "tokens", "token-classification", tag_oracle, aggregation_strategy="simple")
    n_spans = 0
    for text, found in zip(TEXTS, runtime.classify(TEXTS, model=tokens_fp32), strict=True):
        assert isinstance(found, TokenClassification)
        tokens = [
            (one["start"], one["end"], one["entity"], pytest.approx(one["score"], abs=CLOSE)) for one in plain(text)
        ]
        assert [(*one.span, one.label, one.score) for one in found.tokens] == tokens
        groups = simple(text)
        spans = [
            (one["start"], one["end"], one["entity_group"], pytest.approx(one["score"], abs=CLOSE)) for one in groups
        ]
        assert [(*one.span, one.label, one.score) for one in found.spans] == spans
        assert all(one.text == text[slice(*one.span)] for one in found.spans)
        n_spans += len(spans)
    assert n_spans > 4
    assert {one.label for found in runtime.classify(TEXTS, model=tokens_fp32) for one in found.tokens} == set(TAGS)


def test_ids_are_labelled_as_their_text(texts_fp32: Model, tokens_fp32: Model) -> None:
    text = TEXTS[0]
    assert runtime.classify(texts_fp32.encode(text), model=texts_fp32) == runtime.classify(text, model=texts_fp32)
    assert runtime.classify(tokens_fp32.encode(text), model=tokens_fp32) == runtime.classify(text, model=tokens_fp32)


def test_many_texts_are_labelled_in_order(texts_int8: Model) -> None:
    texts = [f"{n} kings" for n in range(150)]
    found = runtime.classify(texts, model=texts_int8)
    for n in (0, 127, 128, 149):
        assert found[n] == runtime.classify(texts[n], model=texts_int8)


def test_probabilities_of_large_logits_are_finite() -> None:
    logits = np.array([[1e30, -1e30, 0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert Head("sequence", LABELS).scores_of(logits).tolist() == [[1, 0, 0]]
        assert Head("sequence", LABELS, "sigmoid").scores_of(logits).tolist() == [[1, 0, 0.5]]


# other tools and wrong models ----------------------------------------------------------------------------------------


def test_optimum_opens_the_folders(texts_fp32: Model, tokens_fp32: Model) -> None:
    ids = torch.tensor([row + [PAD] * (30 - len(row)) for row in (ROWS[1], ROWS[5])])
    mask = torch.tensor([[1] * len(row) + [0] * (30 - len(row)) for row in (ROWS[1], ROWS[5])])
    for model, kind in ((texts_fp32, ORTModelForSequenceClassification), (tokens_fp32, ORTModelForTokenClassification)):
        opened = kind.from_pretrained(model.folder)
        theirs = opened(input_ids=ids, attention_mask=mask).logits.numpy()
        ours = label_logits(model, [ROWS[1], ROWS[5]])
        for row, one in zip(theirs, ours, strict=True):
            assert np.abs(row[: len(one)] - one).max() < CLOSE
        assert opened.config.id2label == dict(enumerate(model.check_classifier().labels))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: runtime.generate("a", model=model),
        lambda model: runtime.complete(["a"], model=model),
        lambda model: runtime.score("a", model=model),
        lambda model: runtime.score_text("ab", model=model),
        lambda model: runtime.surprisal("ab", model=model),
        lambda model: runtime.embed("ab", model=model),
        lambda model: runtime.prefix("ab", model=model),
        lambda model: runtime.perform("choose", "a _.", model=model, options=["b", "c"]),
    ],
)
def test_a_classifier_writes_no_text(texts_fp32: Model, call: Any) -> None:
    with pytest.raises(ValueError, match=r"is a classifier, and writes, scores and embeds no text: runtime\.classify"):
        call(texts_fp32)


def test_a_language_model_labels_none(demo_int8: Model) -> None:
    with pytest.raises(
        ValueError, match="is a language model, not a classifier: build one from a checkpoint of GPT2For"
    ):
        runtime.classify("a", model=demo_int8)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("", ValueError, r"texts\[0\] is '', which has no tokens"),
        ([[5] * 97], runtime.ContextLengthError, r"texts\[0\] has 97 tokens, and the model has 96 positions"),
        ([[5], [300]], ValueError, r"texts\[1\]\[0\] is 300"),
        (7, TypeError, "texts is 7"),
    ],
)
def test_what_cannot_be_labelled_is_named(texts_fp32: Model, texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtime.classify(texts, model=texts_fp32)


# the folder ----------------------------------------------------------------------------------------------------------


def test_the_files_are_those_of_a_classifier(texts_int8: Model) -> None:
    names = {path.name for path in texts_int8.folder.iterdir()}
    assert {"genai_config.json", "generation_config.json"}.isdisjoint(names)
    card = (texts_int8.folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "a classifier of texts (`negative`, `neutral`, `positive`)" in card
    assert "runtime.classify(" in card


def test_info_names_the_labels(texts_int8: Model) -> None:
    facts = describe(texts_int8.folder)
    assert (facts["labels"], facts["precision"], facts["layers"]) == (", ".join(LABELS), "int8", 3)


@pytest.mark.parametrize("name", ["texts_int8", "tokens_int8", "texts_fp32"])
def test_golden_outputs_are_checked(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name).folder
    found = check_folder(folder)
    assert found.passed
    assert found.n_exact == found.n_tokens >= 4
    assert "labelled, exactly; scores differ by at most 0.0000" in str(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "output"),
        ({"pad_token_id": 7}, "'pad_token_id' has another value"),
        ({"architectures": ["GPT2ForTokenClassification"]}, "output"),
        ({"architectures": ["GPT2LMHeadModel"]}, "no input 'past_key_values.0.key'"),
        ({"id2label": None}, "it is a classifier without labels: id2label is missing; add"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label has the keys"),
        ({"id2label": {"0": "a", "1": 7}}, "id2label has the name 7; a text is expected"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label has the name 'a' twice"),
        ({"problem_type": "odd"}, "problem_type is 'odd'"),
        ({"n_layer": 2}, "3 layers of attention for n_layer 2"),
    ],
)
def test_the_graph_follows_config_json(texts_fp32: Model, tmp_path: Path, change: Any, message: str) -> None:
    folder = Path(shutil.copytree(texts_fp32.folder, tmp_path / "changed"))
    change_config(folder, **change)
    list_again(folder)
    with pytest.raises(runtime.ModelFolderError, match=message):
        Model(folder)


def test_damaged_golden_outputs_are_named(texts_fp32: Model, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(texts_fp32.folder, tmp_path / "changed"))
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    golden["records"][1]["scores"].append(0.5)
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    list_again(folder)
    with pytest.raises(ValueError, match=r"golden\.json: records\[1\]\.scores"):
        check_folder(folder)
    del golden["records"][1]
    golden["records"][0]["scores"] = golden["records"][0]["scores"][::-1]
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    list_again(folder)
    assert not check_folder(folder).passed
