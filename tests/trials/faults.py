"""Injected faults: `python -m tests.trials.faults --count 500`.

An allocation that fails, an exception, a Rust panic: at a random call into onnxruntime, the tokenizer, llguidance, the
batch, the scheduler and the memory budget while a server answers; and at every call of a publication. After each, what
was asked has an answer or an error, the next request is answered as before, and nothing is left over.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from export.folder import folder as publishing
from runtime import estimate
from runtime.generation.batch import Batch
from runtime.generation.record import Record
from runtime.generation.row import Row
from runtime.generation.streaming import TextStream
from runtime.model.kv_cache import InPlaceCache
from runtime.model.memory import Budget
from runtime.model.model import Model
from runtime.model.session import Session
from runtime.model.tokenizer import calls
from runtime.server.engine.engine import Engine
from runtime.server.engine.scheduler import Scheduler
from tests.support.serving import Reply, Running, running, wait_until
from tests.trials.memory import build_models
from tests.trials.table import Row as TableRow
from tests.trials.table import record

PLAIN: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
ASKED: list[dict[str, Any]] = [
    {"n": 4, "temperature": 1, "seed": 3, "logprobs": 2},
    {"regex": "[a-z ]{5,20}", "max_tokens": 30},
    {"prompt": ["One day", "The king", "In the wood"], "stream": True},
    {"prompt": [5, 6, 7] * 90, "echo": True, "logprobs": 1, "repetition_penalty": 1.2},
    {"overflow": "slide", "max_tokens": 40, "stop": ["."], "token_healing": True},
    {"task": "choose", "prompt": "The sky is _.", "options": ["blue", "loud"], "max_tokens": None, "temperature": None},
]
LONGEST = 40  # calls before the one that fails, at most


class Panic(BaseException):
    """What a Rust panic is to Python: no Exception."""


ERRORS: list[Callable[[], BaseException]] = [
    MemoryError,
    lambda: RuntimeError("injected"),
    lambda: Exception("injected"),
    lambda: ValueError("injected"),
    lambda: Panic("injected"),
]


class Fault:
    """Raises once, at one of the next calls of whatever asks it."""

    def __init__(self) -> None:
        self._left, self._error, self.place = 0, None, None  # type: int, BaseException | None, str | None
        self._lock = threading.Lock()

    def arm(self, place: str, calls: int, error: BaseException | None) -> None:
        """At so many calls from now into that place."""
        with self._lock:
            self.place, self._left, self._error = place, calls, error

    @property
    def is_armed(self) -> bool:
        """Whether it has not been raised."""
        return self._error is not None

    def __call__(self, place: str) -> None:
        """A call into that place."""
        with self._lock:
            if self._error is None or place != self.place:
                return
            self._left -= 1
            if self._left > 0:
                return
            error, self._error = self._error, None
        raise error


class Faulty:
    """An object of a library, which asks the fault before every call of a method."""

    def __init__(self, inner: Any, place: str, fault: Fault) -> None:
        self._inner, self._place, self._fault = inner, place, fault

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value) or name.startswith("__"):
            return value

        def call(*given: Any, **named: Any) -> Any:
            self._fault(self._place)
            made = value(*given, **named)
            return Faulty(made, self._place, self._fault) if name == "deep_copy" else made

        return call


METHODS = {
    "onnxruntime": [(Session, "run_with_iobinding")],
    "allocations of a pass": [(InPlaceCache, "_pass")],
    "the batch": [(Batch, name) for name in ("join", "advance", "_slide", "_leave", "park", "resume", "clear")],
    "the scheduler": [(Scheduler, name) for name in ("_drop_ended", "_next", "_post", "_hand_over", "_fail")],
    "rows": [(Record, "add"), (TextStream, "push"), (Row, "end"), (Row, "completion")],
    "the event loop's side": [(Engine, name) for name in ("admit", "reserve")],
}
PLACES = ("tokenizers", "llguidance", *METHODS)


@contextlib.contextmanager
def injected(model: Model, fault: Fault) -> Iterator[None]:
    """Every place asks the fault."""
    from runtime.generation.constrained import grammar

    words = grammar.vocabulary(model)
    library = words._llguidance
    faulty_library = mock.Mock(wraps=library)
    faulty_library.LLMatcher = lambda *given, **named: Faulty(library.LLMatcher(*given, **named), "llguidance", fault)
    words.compile.cache_clear()  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        for place, methods in METHODS.items():
            for owner, name in methods:
                stack.enter_context(mock.patch.object(owner, name, _asking(getattr(owner, name), place, fault)))
        stack.enter_context(mock.patch.object(calls, "guard", _guard_that_asks(fault)))
        stack.enter_context(mock.patch.object(words, "_llguidance", faulty_library))
        yield
    words.compile.cache_clear()  # type: ignore[attr-defined]


def _guard_that_asks(fault: Fault) -> Any:
    """The guard around every call into tokenizers, with the fault raised in the place of the call."""
    guard = calls.guard

    def guard_call(doing: Any, call: Any, *given: Any, **named: Any) -> Any:
        def ask_and_call(*given: Any, **named: Any) -> Any:
            fault("tokenizers")
            return call(*given, **named)

        return guard(doing, ask_and_call, *given, **named)

    return guard_call


def _asking(method: Any, place: str, fault: Fault) -> Any:
    def asked(self: Any, *given: Any, **named: Any) -> Any:
        fault(place)
        return method(self, *given, **named)

    return asked


def try_server(folder: Path, count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """What became of the requests beside each fault, and what was wrong."""
    chance, fault = random.Random(seed), Fault()
    counts, wrong = collections.Counter[str](), list[str]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_silence())
        model = stack.enter_context(Model(folder))
        stack.enter_context(injected(model, fault))
        server = stack.enter_context(running(model))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        expected = server.post(**PLAIN).json["choices"][0]["text"]
        for _ in range(count):
            place, make = chance.choice(PLACES), chance.choice(ERRORS)
            about = f"{place}, {make()!r}"
            fault.arm(place, chance.randint(1, LONGEST), make())
            kinds = [one for one in ASKED if "regex" in one] if place == "llguidance" else ASKED
            asked = [{**PLAIN, **chance.choice(kinds)}, PLAIN]
            try:
                for reply in [one.result(60) for one in [pool.submit(_post, server, fields) for fields in asked]]:
                    counts[_judge(reply)] += 1
                counts["faults" if not fault.is_armed else "not reached"] += 1
                fault.arm(place, 0, None)
                _check(server, expected)
            except Exception as error:
                wrong.append(f"{about}: {type(error).__name__}: {error}")
                if not server.engine.is_alive:
                    break
    return counts, wrong


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The server logs every fault."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _post(server: Running, fields: dict[str, Any]) -> Reply:
    return server.post(**{name: value for name, value in fields.items() if value is not None})


def _judge(reply: Reply) -> str:
    if reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream"):
        assert reply.body.endswith(b"data: [DONE]\n\n"), "a stream without its end"
        return "errors" if b'data: {"error"' in reply.body else "answers"
    if reply.status == 200:
        return "answers"
    assert reply.error["message"], "an error without a message"
    return "errors"


def _check(server: Running, expected: str) -> None:
    """The server is as before."""
    wait_until(lambda: server.engine.n_open == 0 and server.engine.n_running == 0, 20)
    assert server.request("GET", "/health").status == 200, "not healthy"
    assert server.post(**PLAIN).json["choices"][0]["text"] == expected, "another text"


def try_budget(folder: Path, count: int, seed: int) -> tuple[int, list[str]]:
    """How many batches could not be made, and whether what they were to take came back."""
    chance, fault, wrong, n_failed = random.Random(seed), Fault(), list[str](), 0
    limit = int(estimate(folder, rows=2).total * 1.05)
    with Model(folder, max_memory=limit) as model:
        budget = model._budget
        assert isinstance(budget, Budget)
        places = [(InPlaceCache, "__init__"), (Budget, "until_freed"), (Budget, "take")]
        with contextlib.ExitStack() as stack:
            for owner, name in places:
                stack.enter_context(mock.patch.object(owner, name, _asking(getattr(owner, name), "budget", fault)))
            model.new_cache(1)
            before = _taken(budget)
            for _ in range(count):
                fault.arm("budget", chance.randint(1, 4), chance.choice(ERRORS)())
                try:
                    model.new_cache(chance.randint(1, 64), chance.randint(1, 2))
                except BaseException:
                    n_failed += 1
                if (now := _taken(budget)) != before:
                    wrong.append(f"{now - before:,} bytes are taken by nothing")
                    before = now
    return n_failed, wrong


def _taken(budget: Budget) -> int:
    return budget._taken - sum(budget._given_back)


CALLS: list[tuple[Any, str]] = [
    *((Path, name) for name in ("rename", "rmdir", "unlink", "mkdir", "is_dir", "iterdir", "open", "write_text")),
    (publishing, "_swap_atomically"),
    (publishing, "write_checksums"),
    (shutil, "rmtree"),
]
OLD, NEW = "old", "new"


def try_publications() -> tuple[int, list[str]]:
    """A fault at every call of a publication, until it takes fewer: how many, and what was neither old nor new."""
    n, wrong = 0, list[str]()
    for can_swap in (True, False):
        for replaces in (True, False):
            for make in [*ERRORS, lambda: OSError(28, "No space left on device"), KeyboardInterrupt]:
                for n_calls in range(1, 1000):
                    reached, about = _publish(can_swap, replaces, n_calls, make())
                    n += reached
                    if about:
                        wrong.append(f"swap {can_swap}, replaces {replaces}, call {n_calls}, {make()!r}: {about}")
                    if not reached:
                        break
    return n, wrong


def _publish(can_swap: bool, replaces: bool, calls: int, error: BaseException) -> tuple[bool, str]:
    """Whether the fault was reached, and what was wrong."""
    fault = Fault()
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "model"
        if replaces:
            _write(output, OLD)
            publishing.write_checksums(output)
        with contextlib.ExitStack() as stack:
            for owner, name in CALLS:
                stack.enter_context(mock.patch.object(owner, name, _asking_function(getattr(owner, name), fault)))
            if not can_swap:
                stack.enter_context(mock.patch.object(publishing, "_swap_atomically", lambda *_: False))
            fault.arm("publication", calls, error)
            with contextlib.suppress(BaseException), publishing.workspace(output, force=True) as work:
                _write(work / "made", NEW)
                publishing.write_checksums(work / "made")
                publishing.publish(work / "made", output, work)
            reached = not fault.is_armed
            fault.arm("publication", 0, None)
        # what a later build or load finds, once it has put back what was left aside
        try:
            with publishing.workspace(output, force=True):
                pass
        except Exception as error:
            return reached, f"cannot be built again: {error}"
        held = {path.read_text(encoding="utf-8") for path in output.glob("model.onnx")}
        left = [path.name for path in Path(place).iterdir() if path != output]
    about = "" if held <= {OLD, NEW} and (held or not replaces) else f"holds {held}"
    return reached, about or (f"left {left}" if left else "")


def _asking_function(function: Any, fault: Fault) -> Any:
    def asked(*given: Any, **named: Any) -> Any:
        fault("publication")
        return function(*given, **named)

    return asked


def _write(folder: Path, what: str) -> None:
    folder.mkdir()
    for name in ("model.onnx", "config.json"):
        (folder / name).write_text(what, encoding="utf-8")


def main() -> int:
    """Print a row a kind; returns 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="faults of server and budget each (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of chance (default: 0)")
    parser.add_argument("--folder", type=Path, help="model folder (default: the demo, built)")
    given = parser.parse_args()
    folder = given.folder or next(iter(build_models()))
    counts, wrong = try_server(folder, given.count, given.seed)
    told = f"{counts['answers']:,} requests answered, {counts['errors']:,} ended by an error; the next always as before"
    rows = [TableRow("faults injected into a server at work", counts["faults"], _tell(told, wrong))]
    n_failed, wrong_budget = try_budget(folder, given.count, given.seed)
    rows.append(TableRow("faults injected into the memory budget", n_failed, _tell("0 bytes lost", wrong_budget)))
    n_faults, wrong_folders = try_publications()
    rows.append(TableRow("faults injected into a publication", n_faults, _tell("old or new", wrong_folders)))
    for row in rows:
        print(f"{row.tried}: {row.times:,}, {row.happened}", flush=True)
    for line in [*wrong, *wrong_budget, *wrong_folders][:20]:
        print(line, file=sys.stderr)
    record("faults", rows)
    return int(bool(wrong or wrong_budget or wrong_folders))


def _tell(told: str, wrong: list[str]) -> str:
    return f"{told}; {len(wrong):,} wrong"


if __name__ == "__main__":
    sys.exit(main())
