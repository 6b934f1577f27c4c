"""What the benchmark of servers asks, counts and prints, with a server of ours and stand-ins for the peers."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import pytest

from tests.benchmarks import server as benchmark
from tests.benchmarks import services
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.services import SERVICES, Answered
from tests.support.serving import Running
from tests.support.serving import server as server

OURS = SERVICES["gpt2-edge"].title
LINES = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["prompts"] == ["end"]:
        sys.exit("it has had enough")
    print(json.dumps([[0.5, asked["n_new"]] for _ in asked["prompts"]]), flush=True)
"""


def test_services_take_the_weights_of_contenders() -> None:
    assert all(service.weights in CONTENDERS for service in SERVICES.values())


def test_clients_are_asked_together_and_their_first_token_is_timed(server: Running) -> None:
    ask = services.over_http(server.port, min_new_tokens=6)
    answered = ask(["Once upon a time"] * 3, 6)
    assert [one.n_tokens for one in answered] == [6, 6, 6]
    assert all(0 < one.first < 30 for one in answered)


def test_a_text_that_ends_early_is_not_counted(server: Running) -> None:
    with pytest.raises(RuntimeError, match="ended by 'stop'"):
        services.over_http(server.port, stop=[" "])(["Once upon a time"], 6)
    with pytest.raises(RuntimeError, match="replies 400"):
        services.over_http(server.port, nothing=1)(["Once upon a time"], 6)


def test_a_process_is_asked_by_lines_and_its_end_is_told() -> None:
    with tempfile.TemporaryFile("w+") as log, contextlib.ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        process = stack.enter_context(services.running([sys.executable, "-c", LINES], **pipes))
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        ask = services.over_lines(process, log)
        assert ask(["a", "b"], 7) == [Answered(0.5, 7)] * 2
        with pytest.raises(RuntimeError, match="it has had enough"):
            ask(["end"], 7)


def test_rounds_alternate_and_who_fails_is_missing() -> None:
    order = []

    def contender(name: str, seconds: float) -> benchmark.Contender:
        def answer(prompts: Sequence[str]) -> list[Answered]:
            order.append(name)
            if name == "peer" and len(order) > 4:
                raise RuntimeError("out of memory")
            return [Answered(seconds, 4) for _ in prompts]

        return answer

    missing: dict[str, str] = {}
    contenders = {
        benchmark.many(OURS): contender("ours", 0.1),
        benchmark.single(OURS): contender("one", 0.1),
        "peer": contender("peer", 0.2),
    }
    found = benchmark.measure(contenders, [["a", "b"]] * 3, missing)
    assert order == ["ours", "one", "peer", "ours", "one", "peer", "ours", "one"]
    assert missing == {"peer": "out of memory"}
    assert found.keys() == {benchmark.many(OURS), benchmark.single(OURS)}
    # The first round is warm-up.
    assert [len(one.rates) for one in found.values()] == [2, 2]
    assert len(found[benchmark.many(OURS)].first) == 4
    text = benchmark.report(found, missing, argparse.Namespace(rounds=2, threads=1))
    assert "missing: peer: out of memory" in text
    assert f"| {benchmark.many(OURS)} |" in text
    assert "times one client" in text


def test_waits_are_shown_in_milliseconds() -> None:
    measured = benchmark.Measured()
    measured.add([Answered(wait / 1000, 5) for wait in range(1, 101)], 10.0)
    assert measured.row("a") == ["a", "50", "50", "99"]
    measured = benchmark.Measured()
    measured.add([Answered(0.0, 5)], 1.0)
    assert measured.row("b") == ["b", "5", "-", "-"]
