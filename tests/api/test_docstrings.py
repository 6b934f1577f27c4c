"""The examples in the docstrings of the public functions, run as they are written."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import options
from runtime.model.model import Model

FUNCTIONS = [name for name in runtime.__all__ if inspect.isfunction(getattr(runtime, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_work(name: str, demo_int8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo-int8").symlink_to(demo_int8_folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    with runtime.load("models/demo-int8", threads=1) as model:
        names = {"runtime": runtime, "model": model}
        function = inspect.unwrap(getattr(runtime, name))
        [found] = doctest.DocTestFinder(recurse=False).find(function, name, globs=names)
        assert found.examples, f"runtime.{name} has no example"
        report: list[str] = []
        result = doctest.DocTestRunner().run(found, out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("method", [Model.encode, Model.decode, runtime.Session])
def test_examples_of_methods_work(
    method: Any, demo_int8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo-int8").symlink_to(demo_int8_folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    found = [one for one in doctest.DocTestFinder().find(method, globs={"runtime": runtime}) if one.examples]
    assert found
    report: list[str] = []
    for one in found:
        result = doctest.DocTestRunner().run(one, out=report.append)
        assert result.failed == 0, "".join(report)


def test_every_public_function_has_an_example() -> None:
    assert {"generate", "stream", "stream_many", "complete", "perform", "prefix", "load_prefix"} <= {*FUNCTIONS}
    assert {"load", "score", "score_text", "evaluate", "estimate"} <= {*FUNCTIONS}


def test_options_and_their_errors_are_described() -> None:
    assert all("Raise" in (inspect.getdoc(one) or "") for one in (options.Options, options.find_form))
