"""A model closed, copied, pickled, and taken along by a fork."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import runtime
from runtime import generate, load
from runtime.model.model import Model
from tests.support.building import REPOSITORY, run


def test_a_closed_model_is_no_use(demo_fp32_folder: Path) -> None:
    with load(demo_fp32_folder) as model:
        assert not model.is_closed
    for use in (lambda: model.session, lambda: model.new_cache(8), lambda: generate("Once", model=model)):
        with pytest.raises(ValueError, match=r"closed.*load it again"):
            use()
    model.close()
    assert model.is_closed


def test_closing_frees_the_session(demo_fp32_folder: Path) -> None:
    model = load(demo_fp32_folder)
    session = weakref.ref(model.session)
    model.close()
    gc.collect()
    assert session() is None


@pytest.mark.parametrize("name", ["generate", "stream", "stream_many", "complete", "score", "perform", "prefix"])
def test_a_function_looked_for_on_a_model_is_named(demo_fp32: Model, name: str) -> None:
    assert callable(getattr(runtime, name))
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'; runtime\.{name}\(\.\.\., model=model\)"):
        getattr(demo_fp32, name)
    with pytest.raises(AttributeError, match=r"no attribute 'colour'$"):
        _ = demo_fp32.colour  # type: ignore[attr-defined]


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_model_is_not_copied(demo_fp32: Model, attempt: Callable[[Model], object]) -> None:
    with pytest.raises(TypeError, match=r"cannot be pickled or copied: .*runtime\.load\(") as error:
        attempt(demo_fp32)
    assert repr(str(demo_fp32.folder)) in str(error.value)


FORKED = """
import os, sys, runtime
folder = sys.argv[1]
model = runtime.load(folder, threads=2)
begun = runtime.stream("Once", model=model, max_new_tokens=20)
next(begun)
if os.fork() == 0:
    for work in (lambda: runtime.generate("Once", model=model), lambda: list(begun)):
        try:
            work()
        except RuntimeError as error:
            assert f"is a fork of {os.getppid()}, which loaded the model" in str(error), error
        else:
            raise AssertionError("a fork used its parent's session")
    with runtime.load(folder, threads=2) as own:
        runtime.generate("Once", model=own, max_new_tokens=2)
    del model, begun
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_is_told_to_load_its_own_and_ends(demo_fp32_folder: Path) -> None:
    done = run(sys.executable, "-c", FORKED, demo_fp32_folder, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
