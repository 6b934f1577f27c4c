"""The head of a classifier: the layer after the last hidden states, and its labels, as config.json has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime._json import shown

Floats = NDArray[np.float32]
SEQUENCE = "sequence"
TOKEN = "token"
CLASSIFIERS = {
    "GPT2ForSequenceClassification": SEQUENCE,
    "OpenAIGPTForSequenceClassification": SEQUENCE,
    "GPT2ForTokenClassification": TOKEN,
}
"""transformers' classes whose head is known, and what each of them labels."""
MAX_LABELS = 65_536
Scores = Literal["softmax", "sigmoid", "value"]
_PROBLEMS: dict[str | None, Scores] = {
    None: "softmax",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "value",
}


@dataclasses.dataclass(frozen=True)
class Head:
    """What a classifier's graph puts out.

    kind: SEQUENCE labels a text by its last token, TOKEN labels every token. labels: their names, by index. scores:
    what the logits become: probabilities that sum to 1, a probability for each label, or values as they are.
    pad_token_id: of a SEQUENCE, the id that is not counted as a last token; None for none.
    """

    kind: str
    labels: tuple[str, ...]
    scores: Scores = "softmax"
    pad_token_id: int | None = None

    @property
    def name(self) -> str:
        """The name of its layer in the checkpoint."""
        return "score" if self.kind == SEQUENCE else "classifier"

    @property
    def has_bias(self) -> bool:
        """Whether the layer has a bias."""
        return self.kind == TOKEN

    def scores_of(self, logits: Floats) -> Floats:
        """What the logits [.., n_labels] mean: probabilities, or values as they are."""
        if self.scores == "value":
            return logits
        doubles = logits.astype(np.float64)
        if self.scores == "sigmoid":
            # exp of negative numbers alone, which never overflows.
            small = np.exp(-np.abs(doubles))
            probabilities = np.where(doubles >= 0, 1.0, small) / (1 + small)
        else:
            weights = np.exp(doubles - doubles.max(-1, keepdims=True))
            probabilities = weights / weights.sum(-1, keepdims=True)
        rounded: Floats = probabilities.astype(np.float32)
        return rounded


def read_head(raw: Mapping[str, Any]) -> Head | None:
    """The head that a `config.json` describes; None for a language model.

    Raises ValueError, naming the key, for a classifier without labels, or with values that are not allowed.

    >>> read_head({"architectures": ["GPT2ForTokenClassification"], "id2label": {"0": "O", "1": "NAME"}}).labels
    ('O', 'NAME')
    """
    architectures = raw.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    kind = next((CLASSIFIERS[name] for name in names if isinstance(name, str) and name in CLASSIFIERS), None)
    if kind is None:
        return None
    labels = _read_labels(raw.get("id2label"))
    if kind == TOKEN:
        return Head(kind, labels)
    return Head(kind, labels, _read_scores(raw.get("problem_type"), len(labels)), _read_pad(raw.get("pad_token_id")))


def _read_labels(value: Any) -> tuple[str, ...]:
    if value is None or value == {}:
        raise ValueError(
            'it is a classifier without labels: id2label is missing; add "id2label": {"0": "NAME", "1": "NAME"} to '
            "config.json, a name for each of its outputs in their order"
        )
    if not isinstance(value, dict) or len(value) > MAX_LABELS:
        raise ValueError(f"id2label is {shown(value)}; an object of at most {MAX_LABELS:,} names is expected")
    if value.keys() != {str(index) for index in range(len(value))}:
        raise ValueError(f"id2label has the keys {shown(list(value))}; 0 to {len(value) - 1} are expected")
    labels = tuple(value[str(index)] for index in range(len(value)))
    if wrong := [label for label in labels if not isinstance(label, str) or not label.strip()]:
        raise ValueError(f"id2label has the name {shown(wrong[0])}; a text is expected")
    if twice := [label for label in labels if labels.count(label) > 1][:1] if len(set(labels)) < len(labels) else []:
        raise ValueError(f"id2label has the name {shown(twice[0])} twice; each label needs a name of its own")
    return labels


def _read_scores(problem: Any, n_labels: int) -> Scores:
    # In a tuple: config.json may give a list, which no dictionary takes as a key.
    if problem not in tuple(_PROBLEMS):
        allowed = ", ".join(name for name in _PROBLEMS if name)
        raise ValueError(f"problem_type is {shown(problem)}; {allowed} or null is expected")
    found = _PROBLEMS[problem]
    # As transformers' pipeline has it: a softmax over one label would always be 1.
    return "sigmoid" if n_labels == 1 and found == "softmax" else found


def _read_pad(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or abs(value) >= 2**31:
        raise ValueError(f"pad_token_id is {shown(value)}; a token id or null is expected")
    return value
