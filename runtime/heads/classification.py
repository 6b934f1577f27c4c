"""Labels of texts, or of their tokens, by a classifier."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime._checks import Prompt
from runtime.graph.head import TOKEN, Head
from runtime.heads.inputs import encode_with_spans, ids_of_text
from runtime.model.model import Model
from runtime.scoring.surprisal import write_ids
from runtime.scoring.windows import TEXTS_TOGETHER, groups, padded
from runtime.scoring.words import Span

Scores = NDArray[np.float32]
OUTSIDE = "O"
"""The label of tokens that are part of no span."""


@dataclasses.dataclass(frozen=True)
class Classification:
    """What `runtime.classify` returns of a text.

    label: the one with the highest score. score: of the label, its probability; a value in a regression. scores: those
    of all labels, in the order of the checkpoint. Probabilities sum to 1, unless the classifier may give a text several
    labels: then each is a probability of its own.
    """

    label: str
    score: float
    scores: Mapping[str, float]


class TokenLabel(NamedTuple):
    """A token, its characters in the text, and its likeliest label with its probability."""

    text: str
    span: Span
    id: int
    label: str
    score: float


class LabelledSpan(NamedTuple):
    """Neighbouring tokens of one label, without `B-` and `I-` before it; score: the mean over the tokens."""

    text: str
    span: Span
    label: str
    score: float


@dataclasses.dataclass(frozen=True)
class TokenClassification:
    """What `runtime.classify` returns of a text where the classifier labels tokens.

    tokens: all of the text. spans: as transformers' pipeline has them with `aggregation_strategy="simple"`; those of
    the label O are left out.
    """

    text: str
    tokens: list[TokenLabel]
    spans: list[LabelledSpan]


def classify(
    model: Model,
    texts: Iterable[Prompt],
    *,
    name: str = "texts",
    progress: Callable[[int], object] = lambda _n: None,
) -> Iterator[Classification | TokenClassification]:
    """The labels of each text, in order, as groups of texts are done; see `runtime.classify`.

    name: of the argument, for messages. progress: called with the number of texts that were labelled since the last
    call.
    """
    head = model.check_classifier()
    inputs = (_read(model, head, text, f"{name}[{index}]") for index, text in enumerate(texts))
    while group := list(itertools.islice(inputs, TEXTS_TOGETHER)):
        found = label_logits(model, [one.ids for one in group])
        progress(len(group))
        for one, logits in zip(group, found, strict=True):
            scores = head.scores_of(logits)
            yield _of_tokens(head, one, scores) if head.kind == TOKEN else _of_text(head, scores)


def label_logits(model: Model, rows: Sequence[Sequence[int]]) -> list[Scores]:
    """The logits of texts that are ids: [n_labels] each, of a classifier of tokens [n_tokens, n_labels].

    Texts share passes, sorted by length, with exactly the results that each has alone.
    """
    lengths = [len(ids) for ids in rows]
    found: list[Scores] = [np.empty(0, np.float32)] * len(rows)
    head = model.check_classifier()
    for group in groups(lengths, sorted(range(len(rows)), key=lengths.__getitem__)):
        length = padded(max(lengths[index] for index in group))
        ids = np.zeros((len(group), length), np.int64)
        mask = np.zeros_like(ids)
        for row, index in enumerate(group):
            ids[row, : lengths[index]] = rows[index]
            mask[row, : lengths[index]] = 1
        logits = model.run_classifier(ids, mask)
        for row, index in enumerate(group):
            found[index] = logits[row, : lengths[index]] if head.kind == TOKEN else logits[row]
    return found


class _Input(NamedTuple):
    """A text: its ids; the characters of each and what was put around the text, where tokens are labelled."""

    text: str
    ids: list[int]
    spans: list[Span]
    is_special: list[bool]


def _read(model: Model, head: Head, text: Prompt, name: str) -> _Input:
    if head.kind != TOKEN:
        return _Input("", ids_of_text(model, text, name), [], [])
    if isinstance(text, str):
        encoding = encode_with_spans(model, text, name)
        is_special = [bool(one) for one in encoding.special_tokens_mask]
        return _Input(text, list(encoding.ids), list(encoding.offsets), is_special)
    ids = ids_of_text(model, text, name)
    written, spans = write_ids(model, ids) if model.has_tokenizer else ("", [(0, 0)] * len(ids))
    return _Input(written, ids, spans, [False] * len(ids))


def _of_text(head: Head, scores: Scores) -> Classification:
    best = int(scores.argmax())
    named = dict(zip(head.labels, map(float, scores), strict=True))
    return Classification(head.labels[best], float(scores[best]), named)


def _of_tokens(head: Head, given: _Input, scores: Scores) -> TokenClassification:
    tokens = [
        TokenLabel(given.text[slice(*span)], span, id_, head.labels[int(row.argmax())], float(row.max()))
        for id_, span, row, special in zip(given.ids, given.spans, scores, given.is_special, strict=True)
        if not special
    ]
    return TokenClassification(given.text, tokens, [_join(given.text, group) for group in _groups_of(tokens)])


def _groups_of(tokens: Sequence[TokenLabel]) -> Iterator[list[TokenLabel]]:
    """Neighbours of one label; one that begins with `B-` begins another group."""
    group: list[TokenLabel] = []
    for token in tokens:
        if group and (token.label.startswith("B-") or _tag(token.label) != _tag(group[-1].label)):
            yield group
            group = []
        if token.label != OUTSIDE:
            group.append(token)
        elif group:
            yield group
            group = []
    if group:
        yield group


def _tag(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _join(text: str, group: Sequence[TokenLabel]) -> LabelledSpan:
    span = group[0].span[0], group[-1].span[1]
    score = float(np.mean([token.score for token in group]))
    return LabelledSpan(text[slice(*span)], span, _tag(group[0].label), score)


def as_json(one: Classification | TokenClassification) -> dict[str, Any]:
    """The result as JSON values: the command line and the server write it so."""
    if isinstance(one, Classification):
        scores = [{"label": label, "score": score} for label, score in one.scores.items()]
        return {"label": one.label, "score": one.score, "scores": scores}
    return {"tokens": [each._asdict() for each in one.tokens], "spans": [each._asdict() for each in one.spans]}
