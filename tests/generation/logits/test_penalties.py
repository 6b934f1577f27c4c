"""What ids so far do to the next logits, beside transformers' logits processors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import GenerationConfig
from transformers.generation import logits_process as processors

from runtime import complete, generate
from runtime.generation.logits.history import TokenHistory
from runtime.generation.logits.penalties import Penalties, make_penalties
from runtime.model.model import Model
from runtime.options import Options
from runtime.tokenization.encode import encode
from tests.support.oracle import demo

N_VOCAB = 12
EOS = [0, 3]
Logits = NDArray[np.float32]
calm = settings(deadline=None, max_examples=60)
LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=N_VOCAB, max_size=N_VOCAB).map(lambda v: np.array(v, "f4"))
ID = st.integers(0, N_VOCAB - 1)
IDS = st.lists(ID, min_size=1, max_size=20)
PROMPT = "Once upon a time there was a little mouse who"
EVERYTHING: dict[str, Any] = {
    "logit_bias": {261: 2.0, 300: -3.5, 12: 1.5},
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 20,
    "suppress_ids": [13, 14],
    "stop_ids": [15],
}


N_WINDOW = 64


def ours(logits: Logits, ids: Sequence[int], n_prompt: int = 1, n_window: int = N_WINDOW, **options: Any) -> Logits:
    penalties = make_penalties(Options(max_new_tokens=64, **options), EOS, N_VOCAB, n_window)
    return logits if penalties is None else apply(penalties, logits, ids, n_prompt)


def apply(penalties: Penalties, logits: Logits, ids: Sequence[int], n_prompt: int) -> Logits:
    """What they make of logits after ids that all come at once."""
    history = penalties.new_history(n_prompt, 10**6)
    history.follow(ids)
    return penalties(logits, history, len(ids) - n_prompt)


def theirs(processor: Any, logits: Logits, ids: Sequence[int]) -> Logits:
    return np.asarray(processor(torch.tensor([list(ids)]), torch.from_numpy(logits.copy())[None])[0].numpy())


def chain(options: dict[str, Any], n_prompt: int) -> processors.LogitsProcessorList:
    """The processors that transformers makes of options under the runtime's names."""
    given_ = dict(options)
    bias = {(id_,): value for id_, value in given_.pop("logit_bias").items()}
    ends = [0, *given_.pop("stop_ids")]
    suppressed = given_.pop("suppress_ids")
    config: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        sequence_bias=bias, suppress_tokens=suppressed, eos_token_id=ends, max_length=n_prompt + 40, **given_
    )
    demo()._prepare_special_tokens(config)
    made: processors.LogitsProcessorList = demo()._get_logits_processor(config, input_ids_seq_length=n_prompt)
    return made


@calm
@given(logits=LOGITS, ids=IDS, penalty=st.floats(0.1, 5))
def test_repetition_penalty_is_that_of_transformers(logits: Logits, ids: list[int], penalty: float) -> None:
    expected = theirs(processors.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
    np.testing.assert_allclose(ours(logits, ids, repetition_penalty=penalty), expected, rtol=1e-6)


@calm
@given(logits=LOGITS, ids=st.lists(st.integers(0, 2), min_size=1, max_size=20), size=st.integers(1, 5))
def test_no_repeat_ngram_is_that_of_transformers(logits: Logits, ids: list[int], size: int) -> None:
    expected = theirs(processors.NoRepeatNGramLogitsProcessor(size), logits, ids)
    np.testing.assert_array_equal(ours(logits, ids, no_repeat_ngram_size=size), expected)


@calm
@given(logits=LOGITS, ids=IDS, n_prompt=st.integers(1, 10), least=st.integers(1, 12), stop_ids=st.lists(ID, max_size=3))
def test_min_new_tokens_is_that_of_transformers(
    logits: Logits, ids: list[int], n_prompt: int, least: int, stop_ids: list[int]
) -> None:
    n_prompt = min(n_prompt, len(ids))
    ends = [*EOS, *stop_ids]
    expected = theirs(processors.MinNewTokensLengthLogitsProcessor(n_prompt, least, ends), logits, ids)
    got = ours(logits, ids, n_prompt, min_new_tokens=least, stop_ids=stop_ids)
    np.testing.assert_array_equal(got, expected)


@calm
@given(logits=LOGITS, ids=IDS, suppressed=st.lists(ID, min_size=1, max_size=6))
def test_suppressed_ids_are_those_of_transformers(logits: Logits, ids: list[int], suppressed: list[int]) -> None:
    expected = theirs(processors.SuppressTokensLogitsProcessor(suppressed), logits, ids)
    np.testing.assert_array_equal(ours(logits, ids, suppress_ids=suppressed), expected)


@calm
@given(logits=LOGITS, ids=IDS, bias=st.dictionaries(ID, st.floats(-100, 100), min_size=1, max_size=6))
def test_logit_bias_is_that_of_transformers(logits: Logits, ids: list[int], bias: dict[int, float]) -> None:
    biases: Any = {(id_,): value for id_, value in bias.items()}
    expected = theirs(processors.SequenceBiasLogitsProcessor(biases), logits, ids)
    np.testing.assert_allclose(ours(logits, ids, logit_bias=bias), expected, rtol=1e-6, atol=1e-6)


@calm
@given(logits=LOGITS, ids=IDS, n_prompt=st.integers(0, 20), presence=st.floats(-2, 2), frequency=st.floats(-2, 2))
def test_presence_and_frequency_are_those_of_openai(
    logits: Logits, ids: list[int], n_prompt: int, presence: float, frequency: float
) -> None:
    n_prompt = min(n_prompt, len(ids))
    counts = Counter(ids[n_prompt:])
    expected = [logit - counts[i] * frequency - (counts[i] > 0) * presence for i, logit in enumerate(logits.tolist())]
    got = ours(logits, ids, n_prompt, presence_penalty=presence, frequency_penalty=frequency)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_logits_given_are_not_changed() -> None:
    logits = np.ones(N_VOCAB, np.float32)
    changed = ours(logits, [1, 1], repetition_penalty=2.0, logit_bias={1: 3}, suppress_ids=[2])
    assert (logits == 1).all()
    assert not (changed == 1).all()


def test_options_that_change_nothing_need_no_function() -> None:
    assert make_penalties(Options(), EOS, N_VOCAB, N_WINDOW) is None


def test_all_of_them_write_what_transformers_writes(demo_fp32: Model) -> None:
    ids = encode(demo_fp32, PROMPT)
    bias = {(id_,): value for id_, value in EVERYTHING["logit_bias"].items()}
    out = demo().generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=40,
        pad_token_id=0,
        eos_token_id=[0, 15],
        sequence_bias=bias,
        suppress_tokens=EVERYTHING["suppress_ids"],
        **{name: EVERYTHING[name] for name in ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")},
    )
    expected = [id_ for id_ in out[0, len(ids) :].tolist() if id_ not in (0, 15)]
    [got] = complete(PROMPT, model=demo_fp32, max_new_tokens=40, **EVERYTHING)
    assert got.ids == expected
    assert got.ids != complete(PROMPT, model=demo_fp32, max_new_tokens=40)[0].ids


def test_scores_before_the_draw_are_those_of_transformers(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties, then warpers, in transformers' own order."""
    options = EVERYTHING | {"temperature": 0.9, "top_k": 60, "top_p": 0.9, "min_p": 0.001, "typical_p": 0.95}
    options["min_new_tokens"] = 5
    seen: list[Any] = []

    def likeliest(probabilities: NDArray[np.float64], _u: float) -> int:
        seen.append(probabilities.copy())
        return int(probabilities.argmax())

    monkeypatch.setattr("runtime.generation.logits.sampling.draw", likeliest)
    [got] = complete(PROMPT, model=demo_fp32, max_new_tokens=8, seed=0, **options)
    ids = encode(demo_fp32, PROMPT)
    process: Any = chain(options | {"do_sample": True}, len(ids))
    for step, probabilities in enumerate(seen):
        so_far = torch.tensor([ids + got.ids[:step]])
        with torch.inference_mode():
            scores = process(so_far, demo()(so_far).logits[:, -1])
        np.testing.assert_allclose(probabilities, torch.softmax(scores, -1)[0].numpy(), atol=1e-4)
    assert len(seen) == 8


def test_nothing_left_to_generate_is_an_error(demo_fp32: Model) -> None:
    with pytest.raises(ValueError, match="leave no token"):
        generate(PROMPT, model=demo_fp32, suppress_ids=range(demo_fp32.config.vocab_size))


@pytest.mark.parametrize("wrong", [-1, 10**6])
@pytest.mark.parametrize("option", ["suppress_ids", "stop_ids", "logit_bias"])
def test_an_id_outside_the_vocabulary_is_named(demo_fp32: Model, option: str, wrong: int) -> None:
    given_: dict[str, Any] = {option: {wrong: 1.0} if option == "logit_bias" else [wrong]}
    with pytest.raises(ValueError, match=f"{wrong}.*outside the vocabulary"):
        generate(PROMPT, model=demo_fp32, **given_)


@pytest.mark.parametrize("bias", [math.inf, 1e39, 1e300])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}], ids=repr)
def test_a_bias_beyond_float32_is_certainty(demo_fp32: Model, options: dict[str, Any], bias: float) -> None:
    [got] = complete(PROMPT, model=demo_fp32, max_new_tokens=3, logit_bias={300: bias}, **options)
    assert got.ids == [300] * 3
    [never] = complete(PROMPT, model=demo_fp32, max_new_tokens=1, logit_bias={got.ids[0]: -bias}, **options)
    assert never.ids != [300]


def test_a_penalty_counts_the_continuation_and_not_the_prompt() -> None:
    logits = np.zeros(N_VOCAB, np.float32)
    got = ours(logits, [5, 5, 6, 6, 7], 2, presence_penalty=1.0, frequency_penalty=0.5)
    assert got[[5, 6, 7]].tolist() == [0.0, -2.0, -1.5]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 1.7e308},
        {"presence_penalty": 1.7e308, "logit_bias": {1: np.inf}},
        {"frequency_penalty": -1.7e308, "logit_bias": {1: -np.inf}},
    ],
    ids=str,
)
def test_penalties_beyond_float32_leave_numbers(options: dict[str, Any]) -> None:
    logits = np.array([0, 1, -1, np.float32(3e38)], np.float32)
    with np.errstate(all="raise", over="ignore", under="ignore"):
        got = ours(logits, [0, 1, 2, 3, 1], 0, **options)
    assert not np.isnan(got).any()
    assert got.max() > -np.inf


@calm
@given(logits=LOGITS, before=IDS, ids=st.lists(ID, min_size=8, max_size=8), n_prompt=st.integers(0, 28))
def test_ids_beyond_the_window_count_no_more(logits: Logits, before: list[int], ids: list[int], n_prompt: int) -> None:
    """What the model does not see any more changes nothing."""
    options = Options(repetition_penalty=1.3, no_repeat_ngram_size=2, presence_penalty=0.5, frequency_penalty=0.2)
    penalties = Penalties(options, EOS, N_VOCAB, n_window=len(ids))
    n_prompt = min(n_prompt, len(before) + len(ids))
    found = apply(penalties, logits, [*before, *ids], n_prompt)
    np.testing.assert_array_equal(found, apply(penalties, logits, ids, max(0, n_prompt - len(before))))


# id by id ----------------------------------------------------------------------------------------------------------


@calm
@given(
    ids=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    cuts=st.lists(st.integers(1, 40), max_size=8),
    n_prompt=st.integers(1, 10),
    n_window=st.integers(1, 12),
    size=st.integers(0, 14),
)
def test_a_history_is_what_its_window_says(
    ids: list[int], cuts: list[int], n_prompt: int, n_window: int, size: int
) -> None:
    """However many ids come at a time, and across forks."""
    history = TokenHistory(n_prompt, n_window, finds_repeats=True)
    for end in sorted({*(cut for cut in cuts if cut < len(ids)), len(ids)}):
        history, left_behind = history.fork(), history
        history.follow(ids[:end])
        left_behind.follow([*ids[:end], 1, 2])
        window = ids[max(0, end - n_window) : end]
        generated = window[max(0, n_prompt - max(0, end - n_window)) :]
        assert history.window.tolist() == window
        assert history.counts == Counter(window)
        assert history.generated_counts == Counter(generated)
        assert history.repeat_lengths.tolist() == [slow_repeat_length(window, at) for at in range(len(window) - 1)]
        assert set(history.completing(size).tolist()) == slow_completing(window, size)


def slow_repeat_length(window: list[int], at: int) -> int:
    return next((n for n in range(at + 1) if window[at - n] != window[-1 - n]), at + 1)


def slow_completing(window: list[int], size: int) -> set[int]:
    """By the definition: the last of every `size` ids that begin with the window's last ones."""
    begin = window[len(window) - size + 1 :]
    n_starts = len(window) - size + 1
    return {window[at + size - 1] for at in range(n_starts) if size and window[at : at + size - 1] == begin}


@pytest.mark.parametrize("n_prompt", [1, 30])
def test_a_growing_text_is_penalized_as_transformers_does(n_prompt: int) -> None:
    """Three hundred steps of one continuation, whose ids repeat themselves often."""
    random = np.random.default_rng(n_prompt)
    ids = random.integers(0, 4, 330).tolist()
    penalties = Penalties(Options(repetition_penalty=1.4, no_repeat_ngram_size=3), EOS, N_VOCAB, n_window=400)
    history = penalties.new_history(n_prompt, len(ids))
    for end in range(n_prompt, n_prompt + 300):
        logits = random.standard_normal(N_VOCAB).astype(np.float32)
        history.follow(ids[:end])
        expected = theirs(processors.RepetitionPenaltyLogitsProcessor(1.4), logits, ids[:end])
        expected = theirs(processors.NoRepeatNGramLogitsProcessor(3), expected, ids[:end])
        np.testing.assert_allclose(penalties(logits, history, end - n_prompt), expected, rtol=1e-6)


class Counted(list[int]):
    """Ids that count how many of them are read."""

    n_read = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.n_read += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self) -> Any:
        raise AssertionError("all of the history is read")


@pytest.mark.parametrize("n_before", [1_000, 100_000])
def test_a_step_reads_one_id_and_works_on_one_window(n_before: int) -> None:
    """However long the text has become."""
    n_window = 128
    penalties = Penalties(
        Options(repetition_penalty=1.3, no_repeat_ngram_size=50, presence_penalty=0.5), EOS, N_VOCAB, n_window
    )
    ids = Counted([5, 6] * (n_before // 2))
    history = penalties.new_history(1, 10**9)
    history.follow(ids)
    assert ids.n_read == n_window
    logits = np.zeros(N_VOCAB, np.float32)
    for step in range(3 * n_window):
        ids.append(step % 3)
        ids.n_read = 0
        history.follow(ids)
        penalties(logits, history, len(ids) - 1)
        assert ids.n_read == 1
        assert len(history.window) == sum(history.counts.values()) == n_window
    assert sum(array.size for array in vars(history).values() if isinstance(array, np.ndarray)) == 4 * n_window


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"lookup": 4}], ids=repr)
def test_every_id_is_taken_in_once(demo_fp32: Model, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Of a row, and of every beam: a step costs the ids that are new, not those that are there."""
    taken: list[int] = []
    follow = TokenHistory.follow

    def counted(history: TokenHistory, ids: Sequence[int]) -> None:
        taken.append(len(ids) - history._n_seen)
        follow(history, ids)

    monkeypatch.setattr(TokenHistory, "follow", counted)
    n_new = 30
    [one] = complete(PROMPT, model=demo_fp32, max_new_tokens=n_new, repetition_penalty=1.2, **options)
    assert one.n_tokens == n_new
    assert taken[0] == len(encode(demo_fp32, PROMPT))
    assert set(taken[1:]) == {1}
    assert len(taken) <= n_new * options.get("num_beams", 1)
