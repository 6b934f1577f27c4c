"""Sessions: equal to generate bit by bit, and to a new session whatever was forked and rewound before."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtime
from runtime.model.model import Model
from runtime.model.prefill import prefill
from tests.conftest import count_passes

PROMPT = "Once upon a time there was a king who had three sons"
LONG = "The old king had three sons. " * 45  # over 256 tokens


@pytest.fixture(params=["demo_int8", "demo_fp32", "demo_reference"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("prompt", [PROMPT, LONG], ids=["short", "long"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "top_p": 0.9, "seed": 7},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "presence_penalty": 0.5},
    ],
    ids=["greedy", "sampled", "penalized"],
)
def test_the_same_as_complete_to_the_last_bit(model: Model, prompt: str, options: dict[str, Any]) -> None:
    [expected] = runtime.complete(prompt, model=model, max_new_tokens=12, logprobs=0, **options)
    session = runtime.Session(model)
    session.append(prompt)
    n = len(session)
    logprobs = []
    for _ in expected.ids:
        id_ = session.sample(**options)
        logprobs.append(float(session.logprobs()[id_]))
        session.append([id_])
    assert session.ids[n:] == expected.ids
    assert logprobs == expected.logprobs


def test_the_same_as_score_to_the_last_bit(model: Model) -> None:
    session = runtime.Session(model)
    session.append(LONG.rstrip())
    [id_] = model.encode(" The")
    assert runtime.score([id_], context=LONG.rstrip(), model=model).logprobs == [float(session.logprobs()[id_])]


def test_in_pieces_or_at_once_at_fp32(demo_fp32: Model) -> None:
    ids = demo_fp32.encode(PROMPT)
    pieces = runtime.Session(demo_fp32)
    for begin in range(0, len(ids), 3):
        pieces.append(ids[begin : begin + 3])
    np.testing.assert_allclose(pieces.logits(), fresh(demo_fp32, ids), atol=1e-4)


def fresh(model: Model, ids: list[int]) -> Any:
    """The logits after ids, of a prefill of their own."""
    return prefill(model.new_cache(len(ids)), ids)


def replayed(model: Model, calls: list[list[int]]) -> runtime.Session:
    session = runtime.Session(model)
    for ids in calls:
        session.append(ids)
    return session


class Mirror:
    """A session, and the calls of `append` that make a new one like it."""

    def __init__(self, session: runtime.Session, calls: list[list[int]]) -> None:
        self.session = session
        self.calls = calls

    def append(self, ids: list[int]) -> None:
        self.session.append(ids)
        self.calls.append(ids)

    def rewind(self, n: int) -> None:
        self.session.rewind(n)
        left = n
        kept = []
        for ids in self.calls:
            kept.append(ids[:left])
            left -= len(kept[-1])
        self.calls = [ids for ids in kept if ids]

    def fork(self) -> Mirror:
        return Mirror(self.session.fork(), [*self.calls])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_calls(demo_int8: Model, demo_fp32: Model, data: st.DataObject) -> None:
    is_int8 = data.draw(st.booleans())
    model = demo_int8 if is_int8 else demo_fp32
    mirrors = [Mirror(runtime.Session(model), [])]
    for _ in range(data.draw(st.integers(1, 10))):
        at = data.draw(st.integers(0, len(mirrors) - 1))
        mirror = mirrors[at]
        what = data.draw(st.sampled_from(["append", "append", "step", "fork", "rewind", "read", "close"]))
        if what in ("append", "step"):
            ids = st.lists(st.integers(0, 8191), min_size=1, max_size=1 if what == "step" else 70)
            mirror.append(data.draw(ids))
        elif what == "fork":
            mirrors.append(mirror.fork())
        elif what == "rewind":
            mirror.rewind(data.draw(st.integers(0, len(mirror.session))))
        elif what == "read" and len(mirror.session):
            mirror.session.logits()
        elif what == "close" and len(mirrors) > 1:
            mirrors.pop(at).session.close()
    for mirror in mirrors:
        ids = [id_ for call in mirror.calls for id_ in call]
        assert mirror.session.ids == ids
        if ids:
            logits = mirror.session.logits()
            np.testing.assert_array_equal(logits, replayed(model, mirror.calls).logits())
            if not is_int8:
                np.testing.assert_allclose(logits, fresh(model, ids), atol=1e-4, rtol=1e-4)


def test_sessions_of_a_plain_export(demo_reference: Model) -> None:
    first = Mirror(runtime.Session(demo_reference), [])
    first.append([5, 6, 7, 8])
    second = first.fork()
    first.append([9])
    second.append([10, 11])
    second.rewind(5)
    for mirror in (first, second):
        expected = replayed(demo_reference, mirror.calls).logits()
        np.testing.assert_array_equal(mirror.session.logits(), expected)


def test_rewinding_in_a_long_prompt(demo_int8: Model) -> None:
    ids = demo_int8.encode(LONG)
    for n in (1, 255, 256, 257, len(ids) - 1):
        session = replayed(demo_int8, [ids])
        session.rewind(n)
        session.append([9])
        np.testing.assert_array_equal(session.logits(), replayed(demo_int8, [ids[:n], [9]]).logits())


def test_the_only_session_of_a_cache_copies_nothing(demo_int8: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = copies(monkeypatch)
    session = replayed(demo_int8, [[5, 6, 7]])
    one = session.fork()
    one.append([8])  # goes on in the shared cache
    assert reads == []
    other = session.fork()
    other.append([9])
    assert reads == [3]  # no more than it holds
    session.close()
    other.close()
    one.rewind(2)
    one.append([4])
    assert reads == [3]
    del session, other
    gc.collect()


def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each copy of a row has."""
    from runtime.model.kv_cache import InPlaceCache

    found: list[int] = []
    original = InPlaceCache.read_row
    monkeypatch.setattr(InPlaceCache, "read_row", lambda c, row, end: (found.append(end), original(c, row, end))[1])
    return found


def test_passes(demo_int8: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = count_passes(monkeypatch, "extend", "step")
    session = replayed(demo_int8, [list(range(1, 301)), [5]])
    assert taken == [256, 44, 1]
    session.rewind(300)
    session.fork().append([6])
    assert taken == [256, 44, 1, 1]  # at the end of a pass nothing is computed again
    session.logits()
    session.logits()
    assert taken == [256, 44, 1, 1, 44]


def test_the_cache_grows(demo_int8: Model) -> None:
    session = runtime.Session(demo_int8)
    ids = [3 + at % 50 for at in range(demo_int8.config.n_positions)]
    for begin in range(0, len(ids), 61):
        session.append(ids[begin : begin + 61])
    assert len(session) == demo_int8.config.n_positions
    assert np.isfinite(session.logprobs()).all()
    with pytest.raises(runtime.ContextLengthError, match="append at most 0, or rewind") as raised:
        session.append([5])
    assert raised.value.n_positions == len(session) == len(ids)


def test_forks_in_threads(demo_int8: Model) -> None:
    root = replayed(demo_int8, [demo_int8.encode(PROMPT)])
    forks = [root.fork() for _ in range(4)]

    def go_on(fork: runtime.Session, seed: int) -> None:
        for _ in range(12):
            fork.append([fork.sample(temperature=1.0, seed=seed)])

    threads = [threading.Thread(target=go_on, args=(fork, seed)) for seed, fork in enumerate(forks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, fork in enumerate(forks):
        [one] = runtime.complete(PROMPT, model=demo_int8, max_new_tokens=12, temperature=1.0, seed=seed)
        assert fork.ids[len(root) :][: len(one.ids)] == one.ids


def test_texts_and_special_tokens(demo_int8: Model) -> None:
    session = runtime.Session(demo_int8)
    session.append("<|endoftext|>", special_tokens=True)
    session.append("Once upon")
    session.append("")
    session.append(" a time")
    assert session.ids == [demo_int8.config.bos_token_id, *demo_int8.encode("Once upon a time")]
    assert session.text == "Once upon a time"
    assert repr(session).startswith("<Session 5 tokens, ")


def test_what_is_returned_is_a_copy(demo_int8: Model) -> None:
    session = replayed(demo_int8, [[5, 6]])
    expected = session.logits()
    session.logits()[:] = 0
    session.logprobs()[:] = 0
    session.ids.append(3)
    np.testing.assert_array_equal(session.logits(), expected)
    assert len(session) == 2


def test_errors(demo_int8: Model) -> None:
    session = runtime.Session(demo_int8)
    with pytest.raises(ValueError, match="the session is empty; append a text, or the id"):
        session.logprobs()
    with pytest.raises(ValueError, match=r"^text\[1\] is 8192; the ids of this model's vocabulary are 0 to 8191$"):
        session.append([5, 8192])
    with pytest.raises(ValueError, match="text has no token ids"):
        session.append([])
    with pytest.raises(TypeError, match="text is 5; a text"):
        session.append(5)  # type: ignore[arg-type]
    session.append([5])
    with pytest.raises(ValueError, match="n is 2; it must be at least 0 and at most 1"):
        session.rewind(2)
    with pytest.raises(runtime.OptionError, match="seed=3 has no effect"):
        session.sample(seed=3)
    with pytest.raises(runtime.NoTokenError, match="leave no token to choose"):
        session.sample(suppress_ids=range(8192))
    assert session.ids == [5]
    session.close()
    session.close()
    for call in (session.logits, session.fork, session.sample, lambda: session.append([5]), lambda: session.rewind(0)):
        with pytest.raises(ValueError, match="the session is closed; make another"):
            call()
    with runtime.Session(demo_int8) as other:
        pass
    assert repr(other).startswith("<Session closed, ")
