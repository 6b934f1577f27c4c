"""Any prompt, any option: a correct result, or a clear error of a built-in type; never a crash, never a hang.

`python -m tests.trials.fuzz` drives the same properties by coverage.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import runtime
from runtime.cli import parser as cli
from runtime.tasks.library import TASKS
from tests.support.hostile import N_POSITIONS, ODD, OPTIONS, TEXTS, VALUES, attempt, n_passes, tiny, tiny_folder

calm = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
N_NEW, N_PASSES = 6, 40


def limited(options: dict[str, Any]) -> dict[str, Any]:
    """The options, so that no text is endless."""
    return {"max_new_tokens": N_NEW, **options, "cancel": n_passes(N_PASSES)}


@calm
@given(prompt=TEXTS | ODD, options=OPTIONS)
def test_generate(prompt: Any, options: dict[str, Any]) -> None:
    text = attempt(lambda: runtime.generate(prompt, model=tiny(), **limited(options)))
    if text is None:
        return
    text.encode()
    if options.get("seed") is not None or not options.get("temperature"):
        again = runtime.stream(prompt, model=tiny(), **limited(options))
        assert "".join(again) == text
    if "choices" in options and options["choices"] is not None and options.get("deadline", 10) >= 10:
        # a byte is a pass, for which `cancel` is asked up to five times: the search for a form asks, too
        cut = any(5 * len(choice.encode()) >= N_PASSES for choice in options["choices"])
        assert text in options["choices"] or cut


@calm
@given(
    prompts=TEXTS | st.lists(TEXTS | ODD, max_size=3) | ODD,
    options=OPTIONS,
    more=st.dictionaries(
        st.sampled_from(["n", "num_beams", "length_penalty", "early_stopping", "logprobs", "batch_size", "seed"]),
        ODD | st.sampled_from([1, 2, 3, 0.5, -50, 50.5, "never", False, [1, 2], 65_537]),
        max_size=3,
    ),
)
@example(prompts="", options={"frequency_penalty": -1.7e308}, more={"num_beams": 2})
def test_complete(prompts: Any, options: dict[str, Any], more: dict[str, Any]) -> None:
    found = attempt(lambda: runtime.complete(prompts, model=tiny(), **(limited(options) | more)))
    for one in found or ():
        assert len(one.ids) == len(one.logprobs) == one.n_tokens
        assert one.logprob <= 0
        assert one.finish_reason in ("eos", "stop", "length", "context", "cancelled", "deadline", "no_token")


@calm
@given(
    continuation=TEXTS | st.lists(TEXTS, max_size=3) | ODD,
    context=TEXTS | ODD,
    overflow=st.sampled_from(["error", "truncate_left"]) | ODD,
)
def test_score(continuation: Any, context: Any, overflow: Any) -> None:
    found = attempt(lambda: runtime.score(continuation, context=context, model=tiny(), overflow=overflow))
    for one in [] if found is None else found if isinstance(found, list) else [found]:
        assert len(one.ids) == len(one.logprobs) == len(one.greedy)
        assert one.logprob <= 0 < one.perplexity


@calm
@given(text=TEXTS | ODD, stride=st.sampled_from([None, 0, 1, 7, N_POSITIONS, N_POSITIONS + 1]) | ODD)
def test_score_text(text: Any, stride: Any) -> None:
    found = attempt(lambda: runtime.score_text(text, model=tiny(), stride=stride))
    if found is not None:
        assert len(found.ids) == len(text.encode()) - 1  # a byte is a token of this model


FIELDS = st.dictionaries(
    st.sampled_from(["to", "examples", "options", "scoring", "stop_words", "question", "abstain_below", "overflow"]),
    ODD
    | TEXTS
    | st.lists(TEXTS, max_size=3)
    | st.sampled_from(["Spanish", "partial", [("a", "b")], ["x", "y"], (), 0.5]),
    max_size=3,
)


@calm
@given(task=st.sampled_from([*TASKS]) | ODD, text=TEXTS | ODD, fields=FIELDS, options=OPTIONS)
def test_perform(task: Any, text: Any, fields: dict[str, Any], options: dict[str, Any]) -> None:
    given_options = {} if task in ("choose", "last_word") else limited(options)
    answer = attempt(lambda: runtime.perform(task, text, model=tiny(), **(given_options | fields)))
    if answer is not None and answer.confidence is not None:
        assert 0 <= answer.confidence <= 1 + 1e-6


@calm
@given(text=TEXTS | ODD, rest=TEXTS, special_tokens=st.booleans() | ODD, options=OPTIONS)
def test_prefix(text: Any, rest: str, special_tokens: Any, options: dict[str, Any]) -> None:
    prefix = attempt(lambda: runtime.prefix(text, model=tiny(), special_tokens=special_tokens))
    if prefix is None:
        return
    seed = {"seed": 1} if options.get("temperature") else {}
    asked = limited({**seed, "special_tokens": special_tokens, **options})
    asked.pop("deadline", None)
    found = attempt(lambda: runtime.generate(text + rest, model=tiny(), prefix=prefix, **asked))
    asked["cancel"] = n_passes(N_PASSES)
    assert found == attempt(lambda: runtime.generate(text + rest, model=tiny(), **asked))


LINES = st.dictionaries(
    st.sampled_from(["text", "context", "options", "answer"]),
    ODD.filter(lambda value: isinstance(value, str | int | float | list | None)) | TEXTS | st.lists(TEXTS, max_size=3),
)


@calm
@given(
    task=st.sampled_from(["lambada", "choose", "perplexity", "wikitext"]) | ODD,
    content=st.binary(max_size=40) | TEXTS.map(lambda text: text.encode(errors="surrogatepass"))
    | st.lists(LINES, max_size=3).map(lambda lines: "\n".join(map(json.dumps, lines)).encode()),
    limit=st.sampled_from([None, 1, 2]) | ODD,
)  # fmt: skip
def test_evaluate(task: Any, content: bytes, limit: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "file"
        path.write_bytes(content)
        report = attempt(lambda: runtime.evaluate(task, path, model=tiny(), limit=limit))
    assert report is None or report["task"] == task


# the command line --------------------------------------------------------------------------------------------------

WORDS = TEXTS | st.sampled_from(
    ["nan", "inf", "-1", "0", "1e999", "3=inf", "99999999999999999999", "1_0", "\u0663", "-"]
)
FLAGS = [f"--{name.replace('_', '-')}" for name in VALUES]
MORE_FLAGS = [
    "--context",
    "--stride",
    "--field",
    "--json",
    "--verbose",
    "--show",
    "--abstain-below",
    "--limit",
    "--help",
]
ARGUMENTS = st.lists(st.sampled_from([*FLAGS, *MORE_FLAGS]) | WORDS, max_size=5)
BOUNDED = ["--max-new-tokens", "3", "--deadline", "5"]


@calm
@given(
    command=st.sampled_from(["generate", "complete", "score", "perform", "prefix", "evaluate"]) | TEXTS,
    arguments=ARGUMENTS,
    entered=TEXTS,
)
def test_the_command_line(command: str, arguments: list[str], entered: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        given_always = ["--model", str(tiny_folder())]
        given_always += BOUNDED if command in ("generate", "complete", "perform") else []
        given_always += ["--output", str(Path(place) / "prefix")] if command == "prefix" else []
        status, output, errors = run_here([command, *arguments, *given_always], entered)
    assert status in (0, 1, 2)
    assert "Traceback" not in errors
    assert output or errors or status == 0
    assert status == 0 or "error: " in errors


def run_here(arguments: list[str], entered: str) -> tuple[int, str, str]:
    """The command in this process: exit status, standard output and error."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for name in ("stdin", "stdout", "stderr")}
    streams["stdin"].buffer.write(entered.encode(errors="surrogatepass"))
    streams["stdin"].seek(0)
    before = {name: getattr(sys, name) for name in streams}
    try:
        for name, stream in streams.items():
            setattr(sys, name, stream)
        status = 0
        with contextlib.suppress(SystemExit):
            try:
                status = cli.main(arguments)
            except SystemExit as exit_:
                status = int(exit_.code or 0)
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)
    shown = []
    for name in ("stdout", "stderr"):
        streams[name].flush()
        shown.append(streams[name].buffer.getvalue().decode())  # type: ignore[attr-defined]
    return status, shown[0], shown[1]
