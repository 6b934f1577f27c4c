"""Locks that neither a finalizer nor a fork can make wait for ever."""

from __future__ import annotations

import ast
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import runtime
from runtime import estimate, load
from runtime._lock import Lock
from runtime.model.model import Model
from tests.conftest import REPOSITORY
from tests.trials.process import finish, fork

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
SECONDS = 30


@pytest.fixture
def hold() -> Iterator[Callable[[Lock], None]]:
    """Hold a lock in a thread until the end of the test."""
    over, threads = threading.Event(), list[threading.Thread]()

    def begin(lock: Lock) -> None:
        held = threading.Event()

        def run() -> None:
            with lock:
                held.set()
                over.wait(SECONDS)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        assert held.wait(SECONDS)

    yield begin
    over.set()
    for thread in threads:
        thread.join(SECONDS)


def test_a_thread_may_take_it_again() -> None:
    lock = Lock()
    with lock, lock:
        pass


@needs_fork
def test_a_fork_gets_what_another_thread_held(hold: Callable[[Lock], None]) -> None:
    lock = Lock()
    hold(lock)

    def work() -> int:
        with lock:
            return 0

    assert finish(fork(work)) == 0


@needs_fork
def test_a_fork_keeps_what_its_own_thread_held() -> None:
    lock = Lock()

    def work() -> int:
        return int(lock._lock.acquire(blocking=False) is not True)

    with lock:
        assert finish(fork(work)) == 0


@needs_fork
@pytest.mark.skipif(sys.platform == "darwin", reason="onnxruntime does not load a model in a fork there")
def test_forms_work_in_a_fork_while_another_thread_makes_the_vocabulary(
    demo_int8_folder: Path, hold: Callable[[Lock], None]
) -> None:
    pytest.importorskip("llguidance")
    from runtime.generation.constrained import grammar
    from runtime.integrations import dask as corpus
    from runtime.model import resolve as default_model

    for lock in (grammar._LOCK, default_model._lock, corpus._opening):
        hold(lock)

    def work() -> int:
        model = str(demo_int8_folder)
        return int(runtime.generate("a", model=model, choices=[" x", " y"]) not in (" x", " y"))

    assert finish(fork(work)) == 0


@needs_fork
def test_a_fork_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's lock of a module would stay held in the child, and so would every later import of it."""
    from runtime._lock import importing

    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.5)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    begun = threading.Event()

    def import_it() -> None:
        with importing:
            begun.set()
            __import__("slow_to_import")

    thread = threading.Thread(target=import_it)
    thread.start()
    begun.wait(SECONDS)

    def work() -> int:
        with importing:
            __import__("slow_to_import")
        return 0

    assert finish(fork(work)) == 0
    thread.join(SECONDS)


def test_every_collection_inside_the_budget_is_harmless(demo_int8_folder: Path) -> None:
    """A batch in a cycle is freed by the collector, which may run at any object that is made."""
    limit = int(estimate(demo_int8_folder).total * 1.1)
    before = gc.get_threshold()
    with load(demo_int8_folder, max_memory=limit) as model:
        gc.set_threshold(1, 1, 1)
        try:
            for _ in range(12):
                cycle: list[object] = [model.new_cache(512, 1)]
                cycle.append(cycle)
                del cycle
                try:
                    model.new_cache(512, 16)
                except MemoryError:
                    gc.collect()
        finally:
            gc.set_threshold(*before)
        model.new_cache(512, 1)


def test_a_finalizer_of_the_users_may_use_the_model(demo_int8_folder: Path) -> None:
    """It runs in the thread that holds the lock."""
    limit = int(estimate(demo_int8_folder).total * 1.1)

    class Noisy:
        def __init__(self, model: Model) -> None:
            self.model, self.me = model, self

        def __del__(self) -> None:
            self.model.new_cache(1, 1)

    with load(demo_int8_folder, max_memory=limit) as model:
        assert model._budget
        with model._budget._lock:
            made = Noisy(model)
            del made
            gc.collect()


def test_there_is_no_other_lock_and_no_finalizer_takes_one() -> None:
    """`threading.Lock` is not reentrant, and stays held in a fork; the server's condition has a reentrant one."""
    found = set()
    for path in (REPOSITORY / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = (
                node.attr if isinstance(node, ast.Attribute) else node.name if isinstance(node, ast.FunctionDef) else ""
            )
            if name in {"Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "finalize", "__del__"}:
                found.add((path.name, name))
    assert found == {
        ("_lock.py", "RLock"),
        ("memory.py", "finalize"),  # whose callback adds to a deque
        ("folder.py", "finalize"),  # whose callback closes files
        ("scheduler.py", "Condition"),
        ("engines.py", "Lock"),  # of asyncio, in one thread
    }
