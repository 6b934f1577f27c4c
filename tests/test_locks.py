"""The locks hold what pyproject.toml asks for, with hashes, and they are what is installed."""

from __future__ import annotations

import os
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import runtime
from tests.building import REPOSITORY

LOCKS = REPOSITORY / "locks"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
SERVER = tomllib.loads((REPOSITORY / "runtime" / "server" / "pyproject.toml").read_text(encoding="utf-8"))
OURS = {"gpt2-edge", "gpt2-edge-server"}
ENVIRONMENTS = {"export-light": ["export-light"], "export": ["export"], "dev": ["export", "dev"]}


def asked(extras: list[str], project: dict[str, Any] = PROJECT["project"]) -> list[Requirement]:
    """What the project and some of its extras require, extras of extras included, this project itself left out."""
    texts = project["dependencies"] + [need for extra in extras for need in project["optional-dependencies"][extra]]
    needs = [Requirement(text) for text in texts]
    inner = [extra for need in needs if need.name == "gpt2-edge" for extra in sorted(need.extras)]
    return [need for need in needs if need.name not in OURS] + (asked(inner) if inner else [])


def locked(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock, with its hashes."""
    text = re.sub(r"\s*(^|\s)#.*", "", path.read_text(encoding="utf-8")).replace("\\\n", " ")
    entries = [line.split(" --hash=") for line in text.splitlines() if line.strip()]
    return [(Requirement(need), [found.strip() for found in hashes]) for need, *hashes in entries]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_lock_is_exact_and_names_no_place(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE)
    for need, hashes in locked(LOCKS / f"{name}.txt"):
        assert re.fullmatch(r"==[\w.]+", str(need.specifier)), need
        assert hashes, need
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", found) for found in hashes), need


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_lock_has_what_is_asked_for(name: str) -> None:
    needs = asked(ENVIRONMENTS[name])
    needs += map(Requirement, PROJECT["dependency-groups"]["build"])
    if name == "dev":
        needs += [need for need in map(Requirement, SERVER["project"]["dependencies"]) if need.name not in OURS]
    versions: dict[str, set[str]] = {}
    for found, _ in [*locked(LOCKS / f"{name}.txt"), *locked(LOCKS / "torch.txt")]:
        versions.setdefault(canonicalize_name(found.name), set()).add(str(found.specifier).removeprefix("=="))
    for need in needs:
        found_versions = versions.get(canonicalize_name(need.name), set())
        assert found_versions, f"{need} is not in locks/{name}.txt: make lock"
        assert all(need.specifier.contains(one) for one in found_versions), f"{need}: {found_versions}; make lock"


def test_the_smaller_locks_are_parts_of_the_largest() -> None:
    largest = {(need.name, str(need.specifier)): hashes for need, hashes in locked(LOCKS / "dev.txt")}
    for name in ("export-light", "export"):
        for need, hashes in locked(LOCKS / f"{name}.txt"):
            assert largest[need.name, str(need.specifier)] == hashes, need


def test_torch_is_pinned_apart() -> None:
    ((need, hashes),) = locked(LOCKS / "torch.txt")
    assert str(need) in PROJECT["project"]["optional-dependencies"]["export"]
    assert hashes == []
    assert all(found.name != "torch" for found, _ in locked(LOCKS / "dev.txt"))


def test_what_is_installed_is_what_is_locked() -> None:
    needs = [need for need, _ in locked(LOCKS / "dev.txt") if not need.marker or need.marker.evaluate()]
    other = [f"{need}, not {found}" for need in needs if (found := installed(need.name)) not in need.specifier]
    if other and "CI" not in os.environ:
        pytest.skip(f"this environment is not the locked one (`make .venv/dev` makes it): {other}")
    assert not other


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "0"


def test_the_server_is_of_the_same_version() -> None:
    assert SERVER["project"]["version"] == runtime.__version__
    assert f"gpt2-edge=={runtime.__version__}" in SERVER["project"]["dependencies"]
    assert PROJECT["project"]["optional-dependencies"]["server"] == [f"gpt2-edge-server=={runtime.__version__}"]
    assert SERVER["build-system"] == PROJECT["build-system"]
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]
