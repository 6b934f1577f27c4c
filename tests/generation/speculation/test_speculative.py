"""Proposals change how many passes a continuation takes, and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import complete, stream, stream_many
from runtime.generation.completion import Completion
from runtime.generation.speculation import step as speculation
from runtime.generation.speculation.step import Pace
from runtime.model.model import Model
from runtime.tokenization.encode import encode
from tests.support.checkpoints import TINY, build_model, write_checkpoint

PROMPT = "Once upon a time there was a little mouse who"
few = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
Propose = Callable[[Sequence[int], int], list[int]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """300 tokens and 96 positions in fp32."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    write_checkpoint(folder)
    with Model(build_model(folder), threads=1) as model:
        yield model


@pytest.fixture
def propose_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Propose], None]:
    """Put a function in the place of the lookup, as many ids at a time as `lookup` says."""

    def put(function: Propose) -> None:
        proposer = type("Scripted", (), {"propose": staticmethod(function)})
        monkeypatch.setattr(speculation, "Lookup", proposer)
        monkeypatch.setattr(Pace, "count", lambda pace: pace._most)

    return put


def facts(one: Completion) -> dict[str, Any]:
    """What must not depend on proposals, to the last bit."""
    varying = ("prefill_seconds", "decode_seconds", "logprobs", "top_logprobs")
    found = {name: value for name, value in dataclasses.asdict(one).items() if name not in varying}
    return found | {"top": [list(top) for top in one.top_logprobs]}


def knowing(ids: Sequence[int], wrong_at: Sequence[int] = ()) -> Propose:
    """Proposes the ids that are coming, but for those at some places."""

    def propose(so_far: Sequence[int], n: int) -> list[int]:
        coming = range(len(so_far), min(len(so_far) + n, len(ids)))
        return [(ids[at] + 1) % TINY["vocab_size"] if at in wrong_at else ids[at] for at in coming]

    return propose


# the same continuation ---------------------------------------------------------------------------------------------


@few
@given(
    wrong_at=st.lists(st.integers(5, 90), max_size=20),
    lookup=st.integers(1, 12),
    options=st.sampled_from(
        [
            {},
            {"temperature": 1.0, "seed": 4},
            {"temperature": 0.8, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.2},
            {"presence_penalty": 1.0, "frequency_penalty": 0.5},
            {"no_repeat_ngram_size": 2, "min_new_tokens": 30},
            {"overflow": "slide", "max_new_tokens": 150, "pinned_tokens": 2},
            {"overflow": "stop", "max_new_tokens": 150},
        ]
    ),
)
def test_no_proposal_changes_a_continuation(
    tiny: Model,
    propose_by: Callable[[Propose], None],
    wrong_at: list[int],
    lookup: int,
    options: dict[str, Any],
) -> None:
    options = {"model": tiny, "max_new_tokens": 80, "logprobs": 2, **options}
    [expected] = complete("abcde", **options)
    propose_by(knowing(encode(tiny, "abcde") + expected.ids, wrong_at))
    [found] = complete("abcde", lookup=lookup, **options)
    assert facts(found) == facts(expected)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)


@few
@given(seed=st.integers(0, 1000), n_new=st.integers(1, 91))
def test_random_proposals_change_nothing(
    tiny: Model, propose_by: Callable[[Propose], None], seed: int, n_new: int
) -> None:
    random = np.random.default_rng(seed)
    [expected] = complete("abcde", model=tiny, max_new_tokens=n_new)
    propose_by(lambda _ids, n: random.integers(0, TINY["vocab_size"], random.integers(0, n + 1)).tolist())
    [found] = complete("abcde", model=tiny, max_new_tokens=n_new, lookup=7)
    assert facts(found) == facts(expected)


@pytest.mark.parametrize(("n_new", "lookup", "n_passes"), [(1, 9, 1), (2, 9, 2), (11, 9, 2), (12, 9, 3), (91, 4, 19)])
def test_true_proposals_save_passes_and_stay_within_bounds(
    tiny: Model, propose_by: Callable[[Propose], None], passes: list[int], n_new: int, lookup: int, n_passes: int
) -> None:
    """The prompt's pass gives one id, each other pass one more than proposed; 5 + 91 are all positions there are."""
    bias = {TINY["eos_token_id"]: -1e9}
    [expected] = complete("abcde", model=tiny, max_new_tokens=n_new, logit_bias=bias)
    propose_by(knowing(encode(tiny, "abcde") + expected.ids))
    passes.clear()
    [found] = complete("abcde", model=tiny, max_new_tokens=n_new, logit_bias=bias, lookup=lookup)
    assert found.ids == expected.ids
    assert len(passes) == n_passes
    assert sum(passes) == 5 + n_new - 1  # nothing in vain


def test_an_end_inside_a_pass_is_an_end(tiny: Model, propose_by: Callable[[Propose], None], passes: list[int]) -> None:
    [whole] = complete("abcde", model=tiny, max_new_tokens=20)
    ends: list[dict[str, Any]] = [{"stop_ids": [whole.ids[9]]}, {"stop": whole.text[5:7]}, {"max_new_tokens": 9}]
    for end in ends:
        options = {"model": tiny, "max_new_tokens": 20, **end}
        [expected] = complete("abcde", **options)
        propose_by(knowing(encode(tiny, "abcde") + whole.ids))
        passes.clear()
        [found] = complete("abcde", lookup=30, **options)
        assert facts(found) == facts(expected)
        assert len(passes) == 2


def test_rows_with_proposals_do_not_change_each_other(tiny: Model, propose_by: Callable[[Propose], None]) -> None:
    options: dict[str, Any] = {"model": tiny, "max_new_tokens": 25, "temperature": 1.0, "seed": 3, "n": 3}
    prompts = ["abcde", "xyz", "abcde", "q"]
    expected = complete(prompts, **options)
    known = [encode(tiny, prompts[one.prompt_index]) + one.ids for one in expected]

    def propose(ids: Sequence[int], n: int) -> list[int]:  # some rows have proposals, some of those are wrong
        row = next(row for row in known if row[: len(ids)] == list(ids))
        return [] if len(ids) % 3 == 0 else [*row[len(ids) : len(ids) + n - 1], 7]

    propose_by(propose)
    for batch_size in (1, 5, 16):
        found = complete(prompts, lookup=6, batch_size=batch_size, **options)
        assert [facts(one) for one in found] == [facts(one) for one in expected]


def test_samples_of_a_prompt_share_its_pass(
    tiny: Model, propose_by: Callable[[Propose], None], passes: list[int]
) -> None:
    propose_by(lambda _ids, _n: [1])
    complete("abcdefghij" * 5, model=tiny, max_new_tokens=5, lookup=3, n=4, temperature=1.0, seed=2)
    assert sum(n == 50 for n in passes) == 1


def test_a_cancelled_row_stops_between_passes(tiny: Model, propose_by: Callable[[Propose], None]) -> None:
    [whole] = complete("abcde", model=tiny, max_new_tokens=40)
    propose_by(knowing(encode(tiny, "abcde") + whole.ids))
    calls: list[None] = []
    asked = {"cancel": lambda: bool(calls.append(None) or len(calls) > 3)}
    [found] = complete("abcde", model=tiny, max_new_tokens=40, lookup=4, **asked)
    assert found.finish_reason == "cancelled"
    assert 0 < len(found.ids) < 40
    assert found.ids == whole.ids[: len(found.ids)]


def test_pieces_join_to_the_text(demo_fp32: Model) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 80}
    [expected] = complete(PROMPT, **options)
    pieces = list(stream(PROMPT, lookup=8, **options))
    assert "".join(pieces) == expected.text
    assert 1 < len(pieces) < expected.n_tokens
    both = list(stream_many([PROMPT, "The"], lookup=8, **options))
    assert "".join(piece for index, piece in both if index == 0) == expected.text


# the same distribution ---------------------------------------------------------------------------------------------


def joint(model: Model, prompt: str, top_k: int, temperature: float) -> dict[tuple[int, ...], float]:
    """The probability of every pair of ids that may follow, from one pass over each."""

    def likeliest(ids: list[int]) -> dict[int, float]:
        logits = model.new_cache(len(ids)).extend(ids)[-1].astype(np.float64) / temperature
        kept = np.argsort(-logits)[:top_k]
        weights = np.exp(logits[kept] - logits[kept].max())
        return dict(zip(kept.tolist(), (weights / weights.sum()).tolist(), strict=True))

    ids = encode(model, prompt)
    return {(a, b): p * q for a, p in likeliest(ids).items() for b, q in likeliest([*ids, a]).items()}


@pytest.mark.parametrize("rank", [0, 3])
def test_sampling_keeps_its_distribution(tiny: Model, propose_by: Callable[[Propose], None], rank: int) -> None:
    """Pearson's chi-square over the second and third id, the second of which is always proposed."""
    n, expected = 2000, joint(tiny, "abc", top_k=4, temperature=4)
    second = [pair[1] for pair in expected]
    propose_by(lambda _ids, _n: [second[rank]])
    options: dict[str, Any] = {"temperature": 4.0, "top_k": 4, "seed": 11, "lookup": 1, "max_new_tokens": 3}
    found = complete("abc", model=tiny, n=n, batch_size=64, **options)
    counts = Counter((one.ids[0], one.ids[1]) for one in found)
    assert set(counts) <= set(expected)
    statistic = sum((counts[pair] - n * p) ** 2 / (n * p) for pair, p in expected.items())
    freedom = len(expected) - 1
    assert min(n * p for p in expected.values()) > 5
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
