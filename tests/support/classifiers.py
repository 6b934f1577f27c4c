"""Tiny random classifiers, as transformers saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2ForTokenClassification, PreTrainedTokenizerFast

from tests.support.building import END, byte_tokenizer
from tests.support.checkpoints import TINY, Floats, randomize

LABELS = ("negative", "neutral", "positive")
TAGS = ("O", "B-NAME", "I-NAME", "PLACE")
PAD = 299


def write_classifier(
    folder: Path, kind: Any = GPT2ForSequenceClassification, labels: Sequence[str] | None = LABELS, **config: Any
) -> Any:
    """Save a random classifier of TINY's sizes with these labels; returns it as transformers opens it."""
    named: dict[str, Any] = {}
    if labels is not None:
        named = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    model = kind(GPT2Config(**TINY | {"pad_token_id": PAD} | named | config))
    randomize(model)
    model.save_pretrained(folder)
    # Without token types, which transformers would add embeddings for.
    names = ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(257), eos_token=END, model_input_names=names)
    tokenizer.save_pretrained(folder)
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def write_tagger(folder: Path, labels: Sequence[str] = TAGS, **config: Any) -> Any:
    """Save a random classifier of tokens; returns it as transformers opens it."""
    return write_classifier(folder, GPT2ForTokenClassification, labels, **config)


def torch_labels(model: Any, ids: Sequence[int]) -> Floats:
    """The logits of one text by transformers: [n_labels] or [n_tokens, n_labels]."""
    with torch.no_grad():
        logits: Floats = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def spread(logits: Sequence[Floats]) -> float:
    """The standard deviation of all logits together."""
    return float(np.concatenate([one.ravel() for one in logits]).std())
