"""The list of licences names whatever is required, and what the runtime requires is permissive."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from tests.licences import FILE, closure, licence, table
from tests.support.requirements import asked

pytest.importorskip("fastapi", reason="the licences are those of every extra")
PERMISSIVE = {
    "0BSD", "3-Clause BSD License", "Apache Software License", "Apache-2.0", "BSD License", "BSD-2-Clause",
    "BSD-3-Clause", "CC0-1.0", "MIT", "MIT License", "PSF-2.0", "Zlib",
}  # fmt: skip
FILE_BY_FILE = {"certifi", "tqdm"}  # MPL-2.0: who changes one of its files publishes that file


def rows() -> list[str]:
    """The table; skips where the environment is not the locked one."""
    try:
        return table()
    except PackageNotFoundError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"{error} (`make .venv/dev` installs all)")


@pytest.mark.skipif(sys.platform != "linux", reason="the list is of Linux")
def test_every_requirement_is_listed_as_it_is() -> None:
    listed = set(FILE.read_text(encoding="utf-8").splitlines())
    missing = [row for row in rows() if row not in listed]
    assert not missing, "make licences"


def test_each_says_what_its_licence_is() -> None:
    assert all("not stated" not in row for row in rows())


@pytest.mark.parametrize("name", sorted({need.name for need in asked()}))
def test_what_the_runtime_asks_for_is_permissive(name: str) -> None:
    assert terms(name) <= PERMISSIVE


@pytest.mark.parametrize("name", sorted(closure(asked())))
def test_what_comes_with_it_is_permissive(name: str) -> None:
    assert terms(name) <= PERMISSIVE | ({"MPL-2.0"} if name in FILE_BY_FILE else set())


def terms(name: str) -> set[str]:
    """The licences of one package that bind together, or from which one may choose."""
    return set(re.split(r" AND | OR | or ", licence(closure(asked())[name])))
