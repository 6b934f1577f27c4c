"""Windows over texts, and passes that several of them share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.scoring.scoring import SHORT_PAIR, Pair, score_pairs, score_sequences
from runtime.scoring.windows import PASS_BYTES, PASS_SIZE, Request, pass_size, run, windows
from tests.conftest import DEMO
from tests.support.building import QUICK, write_tiny
from tests.support.checkpoints import Floats

STORY = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
SENTENCES = [line for line in STORY.replace(". ", ".\n").splitlines() if 3 < len(line.split()) < 30][:40]


@settings(max_examples=200, deadline=None)
@given(n=st.integers(0, 80), size=st.integers(1, 20), share=st.floats(0, 1), full=st.booleans())
def test_windows_predict_everything_once(n: int, size: int, share: float, full: bool) -> None:
    stride = max(1, round(share * size))
    found = list(windows(n, size, stride, full=full))
    assert [at for _, end, n_new in found for at in range(end - n_new, end)] == list(range(n))
    assert all(1 <= end - begin <= size and 1 <= n_new <= end - begin for begin, end, n_new in found)
    assert all(begin == index * stride for index, (begin, _, _) in enumerate(found[:-1] if full else found))
    if full and found:
        assert found[-1].end - found[-1].begin == min(n, size)


def _all_logits(model: Model, requests: list[Request]) -> list[Floats]:
    found: list[list[Floats]] = [[] for _ in requests]
    for block in run(model, requests):
        assert block.begin == requests[block.request].first + sum(map(len, found[block.request]))
        found[block.request].append(block.logits.copy())
    return [np.concatenate(blocks) for blocks in found]


@pytest.fixture(scope="module")
def int4_64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build whose kernels compute the last of an odd number of rows differently."""
    from export import build

    place = tmp_path_factory.mktemp("int4")
    arguments = ["--precision", "int4", "--block-size", "64", "--no-calibration", *QUICK]
    build.main([str(write_tiny(place / "tiny")), *arguments, "--output", str(place / "model")])
    return place / "model"


def _requests(n_vocab: int, n_positions: int) -> list[Request]:
    draw = np.random.default_rng(0)
    lengths = [1, 1, 2, 3, 3, 5, 8, 13, 21, 40, 41, 77, 1, 7, *draw.integers(1, 30, 16).tolist()]
    lengths += [n for n in (PREFILL_STEP - 1, PREFILL_STEP, PREFILL_STEP + 1) if n <= n_positions]
    return [Request(draw.integers(n_vocab, size=n).tolist(), int(draw.integers(n))) for n in lengths]


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_block", "demo_int4", "int4_64", "demo_reference"])
def test_requests_have_the_same_logits_together_and_alone(name: str, request: pytest.FixtureRequest) -> None:
    """To the last bit, at every precision; beside others, each begins at another place of another pass."""
    known = {"demo_block": "demo_block_folder", "int4_64": "int4_64"}
    found = request.getfixturevalue(known.get(name, name))
    model = Model(found) if isinstance(found, Path) else found
    requests = _requests(model.config.vocab_size, model.config.n_positions)
    together = _all_logits(model, requests)
    for one, logits in zip(requests, together, strict=True):
        assert logits.shape == (len(one.ids) - one.first, model.config.vocab_size)
        (alone,) = _all_logits(model, [one])
        assert np.array_equal(logits, alone)


def test_shared_passes_are_those_of_one_row(demo_int8: Model) -> None:
    """What a prompt is prefilled with."""
    for ids, first in _requests(demo_int8.config.vocab_size, demo_int8.config.n_positions)[:20]:
        (logits,) = _all_logits(demo_int8, [Request(ids, first)])
        assert np.array_equal(logits, demo_int8.new_cache(len(ids)).extend(ids, keep=len(ids))[first:])


def test_short_texts_share_passes(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    original = InPlaceCache.begin_rows

    def begin_rows(cache: InPlaceCache, rows: list[list[int]], *, keep: int) -> Floats:
        sizes.append((len(rows), max(map(len, rows))))
        return original(cache, rows, keep=keep)

    monkeypatch.setattr(InPlaceCache, "begin_rows", begin_rows)
    scores = runtime.score_text(SENTENCES, model=demo_fp32)
    n_tokens = sum(len(score.ids) for score in scores)
    assert len(sizes) < len(SENTENCES) / 4
    assert all(n_rows * length <= pass_size(demo_fp32.config.vocab_size) for n_rows, length in sizes)
    # Sorted by length, the texts need little padding.
    assert sum(n_rows * length for n_rows, length in sizes) < 1.5 * n_tokens


@pytest.mark.parametrize("n_vocab", [1, 8192, 50257, 250_000, 10**9])
def test_passes_are_bounded_by_positions_and_by_bytes_of_logits(n_vocab: int) -> None:
    n = pass_size(n_vocab)
    assert 1 <= n <= PASS_SIZE
    assert n == 1 or 4 * n * n_vocab <= PASS_BYTES
    # As large as the bounds allow.
    assert n == PASS_SIZE or 4 * (n + 1) * n_vocab > PASS_BYTES


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_reference"])
def test_texts_score_together_as_alone(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    texts = [*SENTENCES[:12], STORY[:3000], *SENTENCES[12:15]]
    assert runtime.score_text(texts, model=model) == [runtime.score_text(text, model=model) for text in texts]
    strided = runtime.score_text(texts, model=model, stride=100)
    assert strided == [runtime.score_text(text, model=model, stride=100) for text in texts]
    assert strided[12] != runtime.score_text(texts[12], model=model)


@settings(max_examples=15, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.lists(st.integers(0, 8191), min_size=1, max_size=SHORT_PAIR + 4), st.integers(1, 6)),
        min_size=1,
        max_size=12,
    )
)
def test_pairs_score_together_as_alone(demo_int8: Model, pairs: list[tuple[list[int], int]]) -> None:
    """Short and long ones, and several that are cut at other places of the same ids."""
    cut = [Pair(ids[:-n] or ids[:1], ids[-n:]) for ids, n in pairs]
    cut += [Pair([*one.context_ids, one.ids[0]], one.ids[1:]) for one in cut if len(one.ids) > 1]
    assert score_pairs(demo_int8, cut) == [score_pairs(demo_int8, [one])[0] for one in cut]


def test_a_pair_is_scored_as_the_text_it_is_part_of(demo_fp32: Model) -> None:
    ids = [int(id_) for id_ in np.random.default_rng(1).integers(0, 8192, 30)]
    (whole,) = score_sequences(demo_fp32, [ids])
    (pair,) = score_pairs(demo_fp32, [Pair(ids[:20], ids[20:])])
    assert (pair.logprobs, pair.greedy) == (whole.logprobs[19:], whole.greedy[19:])


def test_options_of_an_evaluation_share_passes(demo_fp32: Model, tmp_path: Path) -> None:
    """The accuracies are those of one example at a time."""
    import json

    examples = [
        {"context": f"{text.rstrip('.')} and the _ ran home.", "options": ["fox", "king", "mouse"], "answer": at % 3}
        for at, text in enumerate(SENTENCES)
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, examples)), encoding="utf-8")
    report = runtime.evaluate("choose", tmp_path / "all.jsonl", model=demo_fp32)
    found = [0.0, 0.0]
    for example in examples:
        (tmp_path / "one.jsonl").write_text(json.dumps(example), encoding="utf-8")
        one = runtime.evaluate("choose", tmp_path / "one.jsonl", model=demo_fp32)
        found = [found[0] + one["accuracy_full"], found[1] + one["accuracy_partial"]]
    assert [report["accuracy_full"] * len(examples), report["accuracy_partial"] * len(examples)] == pytest.approx(found)
    assert report["n"] == report["n_partial"] == len(examples)
