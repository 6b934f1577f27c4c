"""Which tokens a form lets come next, and how likely each is, beside brute force over the vocabulary."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import complete, generate
from runtime._math import softmax
from runtime.generation.batch import Batch
from runtime.generation.completion import Place
from runtime.generation.constrained.constraint import Constraint
from runtime.generation.logits.sampling import uniform
from runtime.generation.row import Row
from runtime.model.model import Model
from runtime.options import Options
from runtime.tokenization.encode import encode

if os.environ.get("CI") != "true":  # there the extra is installed
    pytest.importorskip("llguidance", reason="needs the extra `constrain`")


@pytest.fixture(scope="module")
def tokens(demo_fp32: Model) -> list[bytes]:
    """The bytes of every token, as the tokenizer's own decoder gives them where they are text."""
    from runtime.generation.constrained.grammar import vocabulary

    return vocabulary(demo_fp32).tokens


def constrain(model: Model, n_max: int = 40, **options: Any) -> Constraint:
    made = Options(**options)
    assert made.form is not None
    return Constraint(model, made, made.form, n_max)


def allowed(constraint: Constraint, n_vocab: int) -> set[int]:
    return set(np.flatnonzero(constraint.restrict(np.zeros(n_vocab, np.float32)) == 0).tolist())


def take(constraint: Constraint, id_: int, n_vocab: int) -> None:
    logits = np.full(n_vocab, -np.inf, np.float32)
    logits[id_] = 0
    assert constraint.choose(logits, 0, lambda scores, _step: int(scores.argmax())) == id_


# which tokens may come next ----------------------------------------------------------------------------------------

CHOICES = [" yes", " no", " yesterday", " ¿qué?", " ñandú é", "😀😀", " a.*[b]|(c)^$\\d/#&~-", "line\nline\t{2}", " no"]


def follows(text: bytes, tokens: list[bytes], choices: list[bytes]) -> set[int]:
    """By brute force: a token may come next if text and token begin a choice."""
    return {id_ for id_, token in enumerate(tokens) if token and any(c.startswith(text + token) for c in choices)}


def test_tokens_are_the_tokenizers(demo_fp32: Model, tokens: list[bytes]) -> None:
    for id_, token in enumerate(tokens):
        assert token.decode("utf-8", "replace") == demo_fp32.tokenizer.decode([id_])  # special ones are skipped by both


@pytest.mark.parametrize("seed", range(12))
def test_what_may_come_next_is_what_begins_a_choice(demo_fp32: Model, tokens: list[bytes], seed: int) -> None:
    n_vocab, choices = demo_fp32.config.vocab_size, [choice.encode() for choice in CHOICES]
    constraint, text, random = constrain(demo_fp32, choices=CHOICES), b"", np.random.default_rng(seed)
    while not constraint.is_complete:
        expected = follows(text, tokens, choices)
        ends = demo_fp32.config.eos_token_ids if text in choices else set()
        assert allowed(constraint, n_vocab) == expected | ends
        id_ = int(random.choice(sorted(expected)))
        take(constraint, id_, n_vocab)
        text += tokens[id_]
    assert text in choices


def test_the_end_is_allowed_exactly_where_the_form_may_end(demo_fp32: Model) -> None:
    n_vocab, eos = demo_fp32.config.vocab_size, demo_fp32.config.eos_token_ids
    constraint = constrain(demo_fp32, regex="(ab)*")
    a, b = (demo_fp32.tokenizer.token_to_id(letter) for letter in "ab")
    assert eos <= allowed(constraint, n_vocab)
    take(constraint, a, n_vocab)
    assert not eos & allowed(constraint, n_vocab)
    take(constraint, b, n_vocab)
    assert eos <= allowed(constraint, n_vocab)


def test_special_tokens_written_in_a_form_are_text(demo_fp32: Model) -> None:
    choice = " <|endoftext|>"
    assert generate("Once", model=demo_fp32, choices=[choice]) == choice


# probabilities -----------------------------------------------------------------------------------------------------


def paths(text: bytes, choices: list[bytes], tokens: list[bytes]) -> list[list[int]]:
    """Every sequence of ids whose bytes are a choice."""
    found = [[]] if text in choices else []
    for id_ in follows(text, tokens, choices):
        found += [[id_, *rest] for rest in paths(text + tokens[id_], choices, tokens)]
    return found


def test_choices_are_as_likely_as_their_renormalized_tokens(demo_fp32: Model, tokens: list[bytes]) -> None:
    """No choice begins another, so that a path is the product of its tokens' shares alone."""
    choices, n = [" yes", " no", " it"], 600
    drawn = complete("He said", model=demo_fp32, choices=choices, temperature=1.0, n=n, seed=5, logprobs=0)
    observed = {choice: sum(c.text == choice for c in drawn) for choice in choices}
    ids = demo_fp32.tokenizer.encode("He said", add_special_tokens=False).ids
    encoded = [choice.encode() for choice in choices]
    expected = dict.fromkeys(choices, 0.0)
    for path in paths(b"", encoded, tokens):
        share, text = 1.0, b""
        for n_taken, id_ in enumerate(path):
            logits = logits_after(demo_fp32, [*ids, *path[:n_taken]])
            likely = sorted(follows(text, tokens, encoded))
            share *= float(softmax(logits[likely].astype(np.float64))[likely.index(id_)])
            text += tokens[id_]
        expected[text.decode()] += share
    assert math.isclose(sum(expected.values()), 1, abs_tol=1e-9)
    chi_square = sum((observed[c] - n * expected[c]) ** 2 / (n * expected[c]) for c in choices)
    assert chi_square < 13.8  # 2 degrees of freedom: once in a thousand seeds


def logits_after(model: Model, ids: list[int]) -> NDArray[np.float32]:
    cache = model.new_cache(len(ids))
    last: NDArray[np.float32] = cache.extend(ids)[-1]
    return last.copy()


def test_a_token_that_leaves_no_time_is_drawn_again_in_proportion(demo_fp32: Model) -> None:
    """One token remains: of a, b and c only what completes the form in time keeps its probability."""
    n_vocab = demo_fp32.config.vocab_size
    a, b, c = (demo_fp32.tokenizer.token_to_id(letter) for letter in "abc")
    logits = np.full(n_vocab, -30, np.float32)
    logits[[a, b, c]] = np.log([0.5, 0.3, 0.2])

    def sample(scores: NDArray[np.float32], step: int) -> int:
        shares = softmax(scores.astype(np.float64))
        return int(np.searchsorted(np.cumsum(shares), uniform(1, step)))

    drawn = []
    for step in range(1000):
        constraint = constrain(demo_fp32, n_max=1, regex="aq7q7q7|b|c")
        drawn.append(constraint.choose(constraint.restrict(logits), step, sample))
    assert set(drawn) == {b, c}
    assert abs(drawn.count(b) / 1000 - 0.6) < 0.05


def test_a_row_whose_search_was_interrupted_writes_nothing(demo_fp32: Model) -> None:
    """Also where the prompt is copied from another row, so that no pass asks before the first id."""
    ids = encode(demo_fp32, "Once upon a time")
    options = Options(regex="[a-z]{40}", max_new_tokens=40)
    first = Row(demo_fp32, ids, options, Place())
    asked = iter([False] * 3)
    left = Options(regex="[0-9]{40}", max_new_tokens=40, cancel=lambda: next(asked, True))
    second = Row(demo_fp32, ids, left, Place(0, 1))
    assert second.interruption.reason == "cancelled"
    batch = Batch(demo_fp32, 64, 2)
    batch.join(first)
    assert first.finish_reason is None
    batch.join(second)
    assert (second.completion().ids, second.finish_reason) == ([], "cancelled")
