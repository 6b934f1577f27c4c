"""Clients that mean it ill: what one of them can take of the others, and the trial in small."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from tests.support.serving import Running, running, wait_until

pytest.importorskip("psutil", reason="comes with the extra corpus")
from tests.trials import abuse, watched
from tests.trials import server as trials

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8, timeout=60) as one:
        yield one


MANY = 50_000
LARGE: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [1.5] * MANY}, "prompt"),
    ({"prompt": [["a"]] * MANY}, "prompt"),
    ({"prompt": [[0.5] * MANY]}, "prompt"),
    ({"prompt": PROMPT, "suppress_ids": ["a"] * MANY}, "suppress_ids"),
    ({"prompt": PROMPT, "choices": [1] * MANY}, "choices"),
    ({"prompt": PROMPT, "stop": [1] * MANY}, "stop"),
    ({"prompt": PROMPT, "logit_bias": dict.fromkeys(map(str, range(MANY)), "x")}, "logit_bias"),
    ({"prompt": PROMPT, "task": "choose", "options": ["a"] * 65}, "options"),
    ({"prompt": PROMPT, "task": "answer", "examples": [[1]] * MANY}, "examples"),
    ({"prompt": PROMPT, "task": "last_word", "stop_words": [1] * MANY}, "stop_words"),
    ({"prompt": PROMPT, **dict.fromkeys((f"x{index}" for index in range(MANY)), 1)}, "x0"),
]


@pytest.mark.parametrize(("body", "param"), LARGE, ids=lambda value: ascii(value)[:40])
def test_one_error_is_told_of_many(server: Running, body: dict[str, Any], param: str) -> None:
    """Each takes time to describe, while all other requests wait."""
    from runtime.server import errors

    described: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        describe = errors._describe
        patch.setattr(errors, "_describe", lambda found: (described.append(len(found)), describe(found))[1])
        reply = server.post(**body)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert described[0] <= 8  # a field may be of several types


@pytest.mark.parametrize("overflow", ["error", "stop", "truncate_left", "slide"])
def test_a_text_that_no_context_holds_is_refused_before_it_is_tokenized(server: Running, overflow: str) -> None:
    fields = {"task": "answer", "examples": [["a" * 9000, "b"]]} if overflow == "truncate_left" else {}
    for body in ({"prompt": "a" * 900_000}, {"prompt": PROMPT, **fields} if fields else {"prompt": "ab " * 9000}):
        reply = server.post(**body, overflow=overflow)
        assert reply.error["code"] == "context_length_exceeded", reply.error


def test_a_form_is_of_a_size(server: Running) -> None:
    for field in ({"regex": "a|" * 30_000}, {"choices": ["ab"] * 30_000}, {"json_schema": {"enum": ["a" * 50_000]}}):
        assert server.post(prompt=PROMPT, **field).error["param"] == next(iter(field))


def test_a_form_takes_so_many_tries_a_step(demo_int8: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rows wait for a step; what is found in time is taken, and the form kept."""
    pytest.importorskip("llguidance")
    from runtime.generation.constrained import completion_search as way_search
    from runtime.generation.constrained import constraint

    tried: list[int] = []
    step = way_search._step
    monkeypatch.setattr(way_search.WaySearch, "_run_through", lambda *_: None)  # two at most, from each mask
    monkeypatch.setattr(way_search, "_step", lambda *given: (tried.append(1), step(*given))[1])
    options: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 1,
        "max_new_tokens": 200,
        "regex": "(?:[a-z]{3}[0-9]{2}){30}x",
    }
    n_before = 0
    for _ in runtime.stream(PROMPT, model=demo_int8, **options):
        n_step, n_before = len(tried) - n_before, len(tried)
        assert n_step <= constraint.STEP.tries or n_before == n_step  # the first piece comes with the first search
    assert len(tried) > constraint.STEP.tries


def test_rows_under_way_go_on_between_the_passes_of_a_long_prompt(
    demo_int8: Model, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both get what they get alone."""
    monkeypatch.setattr("runtime.server.engine.scheduler.JOIN_SECONDS", 0.001)  # less than a pass
    long, short = {"prompt": [[7] * 480], "max_tokens": 4}, {"prompt": [[11, 12, 13]], "max_tokens": 300}
    asked: list[dict[str, Any]] = [{**fields, "temperature": 0, "logit_bias": {"0": -100}} for fields in (short, long)]
    with running(demo_int8, prompt_cache_bytes=0) as server, ThreadPoolExecutor(2) as pool:
        alone = [server.post(**fields).json["choices"][0]["gpt2_edge"]["ids"] for fields in asked]
        passes.clear()
        first = pool.submit(lambda: server.post(**asked[0]))
        wait_until(lambda: len(passes) > 5)
        second = pool.submit(lambda: server.post(**asked[1]))
        together = [reply.result().json["choices"][0]["gpt2_edge"]["ids"] for reply in (first, second)]
    assert together == alone
    begin = passes.index(256)
    assert passes[begin : begin + 3] == [256, 1, 224]


@pytest.mark.parametrize(
    ("event", "arguments", "is_wrong"),
    [
        ("open", ("x.txt", "w", 0), True),
        ("open", (str(Path.home() / "secret"), "r", 0), True),
        ("open", (json.__file__, "r", 0), False),
        ("open", (json.__file__, None, watched.WRITES), True),
        ("socket.connect", (None, ("127.0.0.1", 80)), False),
        ("socket.connect", (None, ("192.0.2.1", 80)), True),
        ("socket.getaddrinfo", ("example.org", 80), True),
        ("subprocess.Popen", ("ls",), True),
        ("os.remove", ("x",), True),
        ("import", ("json",), False),
    ],
)
def test_what_a_server_has_no_business_with(event: str, arguments: tuple[Any, ...], is_wrong: bool) -> None:
    assert watched.is_wrong(event, arguments) == is_wrong


def test_wrong_outcomes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        is_idle = staticmethod(lambda: True)
        figures = staticmethod(lambda: (10**9, 50))
        audited = staticmethod(lambda: [f"{watched.AUDIT} open"])

    trial = trials.Trial("a", 1, abuse.Outcomes({"500": 1}))
    trials.check(trial, Broken(), (0, 5))  # type: ignore[arg-type]
    assert trial.wrong == ["OUTCOMES", "1000 MB LEFT", "45 THREADS LEFT", f"{watched.AUDIT} open"]


@pytest.mark.slow
def test_the_server_bears_all_of_it(demo_int8_folder: Path) -> None:
    start = time.monotonic()
    for trial in trials.try_all(demo_int8_folder, 0.03):
        assert trial.wrong == [], trial.row
        assert sum(trial.outcomes.values()) >= trial.count
        print(f"{trial.row.happened}, after {time.monotonic() - start:.0f} s")
