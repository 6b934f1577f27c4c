"""Which head a checkpoint has; heads that are not built are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2DoubleHeadsModel, GPT2ForQuestionAnswering, GPT2ForTokenClassification

from export.checkpoint.checkpoint import open_checkpoint
from runtime.graph.head import SEQUENCE, TOKEN
from tests.support.building import byte_tokenizer
from tests.support.checkpoints import TINY, change_config, edit_weights, write_checkpoint
from tests.support.classifiers import LABELS, TAGS, write_classifier, write_tagger


def test_the_head_follows_from_architectures(tmp_path: Path) -> None:
    write_classifier(tmp_path / "texts", problem_type="multi_label_classification")
    write_tagger(tmp_path / "tokens")
    write_checkpoint(tmp_path / "plain")
    texts = open_checkpoint(str(tmp_path / "texts"), tmp_path).config.head
    assert texts is not None
    assert (texts.kind, texts.labels, texts.scores, texts.pad_token_id) == (SEQUENCE, LABELS, "sigmoid", 299)
    tokens = open_checkpoint(str(tmp_path / "tokens"), tmp_path).config.head
    assert tokens is not None
    assert (tokens.kind, tokens.labels, tokens.pad_token_id) == (TOKEN, TAGS, None)
    assert open_checkpoint(str(tmp_path / "plain"), tmp_path).config.head is None


@pytest.mark.parametrize(("write", "kind"), [(write_classifier, SEQUENCE), (write_tagger, TOKEN)])
@pytest.mark.parametrize("architectures", [None, ["GPT2Model"]])
def test_the_head_follows_from_the_weights(tmp_path: Path, write: Any, kind: str, architectures: Any) -> None:
    write(tmp_path / "unnamed")
    change_config(tmp_path / "unnamed", architectures=architectures)
    found = open_checkpoint(str(tmp_path / "unnamed"), tmp_path)
    assert found.config.head is not None
    assert found.config.head.kind == kind
    assert "Classification" in found.raw_config["architectures"][0]


@pytest.mark.parametrize(
    ("kind", "head"),
    [(GPT2DoubleHeadsModel, "a head for multiple choice"), (GPT2ForQuestionAnswering, "a head for question answering")],
)
def test_other_heads_are_refused_by_name(tmp_path: Path, kind: Any, head: str) -> None:
    folder = tmp_path / "other"
    kind(GPT2Config(**TINY)).save_pretrained(folder)
    byte_tokenizer(257).save(str(folder / "tokenizer.json"))
    with pytest.raises(
        ValueError, match=f"is a {kind.__name__}: {head}.*would be lost. This writes the language model"
    ):
        open_checkpoint(str(folder), tmp_path)
    # Named by its tensors where config.json names no class.
    change_config(folder, remove=["architectures"])
    with pytest.raises(ValueError, match=rf"would be lost: .*\({head}\)"):
        open_checkpoint(str(folder), tmp_path)


@pytest.mark.parametrize(
    ("tensor", "head"),
    [
        ("v_head.summary.weight", "a value or reward head"),
        ("score.weight", "a classifier's head"),
        ("lm_head_of_mine.weight", None),
    ],
)
def test_a_stray_head_of_a_language_model_is_refused(tmp_path: Path, tensor: str, head: str | None) -> None:
    write_checkpoint(tmp_path / "tiny")
    edit_weights(tmp_path / "tiny", lambda weights: weights.update({tensor: np.ones((2, 64), np.float32)}))
    with pytest.raises(ValueError, match=rf"would be lost: {tensor}") as error:
        open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    assert str(error.value).endswith(f"({head})" if head else tensor)


def test_a_classifier_without_labels_says_what_to_add(tmp_path: Path) -> None:
    # transformers writes no id2label for its default of two labels.
    write_classifier(tmp_path / "unnamed", labels=None)
    with pytest.raises(ValueError, match=r'config\.json: it is a classifier without labels: .* add "id2label": \{"0"'):
        open_checkpoint(str(tmp_path / "unnamed"), tmp_path)
    change_config(tmp_path / "unnamed", id2label={"0": "no", "1": "yes"})
    head = open_checkpoint(str(tmp_path / "unnamed"), tmp_path).config.head
    assert head is not None
    assert head.labels == ("no", "yes")


def test_labels_that_do_not_fit_the_weights_are_named(tmp_path: Path) -> None:
    write_classifier(tmp_path / "texts")
    change_config(tmp_path / "texts", id2label={"0": "no", "1": "yes"})
    with pytest.raises(ValueError, match=r"score\.weight is \[3, 64\], but config\.json makes it \[2, 64\]"):
        open_checkpoint(str(tmp_path / "texts"), tmp_path)


def test_a_missing_bias_is_named(tmp_path: Path) -> None:
    model = GPT2ForTokenClassification(GPT2Config(**TINY, id2label=dict(enumerate(TAGS)), label2id={}))
    with torch.no_grad():
        model.save_pretrained(tmp_path / "tokens")
    byte_tokenizer(257).save(str(tmp_path / "tokens" / "tokenizer.json"))
    edit_weights(tmp_path / "tokens", lambda weights: weights.pop("classifier.bias"))
    with pytest.raises(ValueError, match=r"no tensor 'classifier\.bias'"):
        open_checkpoint(str(tmp_path / "tokens"), tmp_path)
