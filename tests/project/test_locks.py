"""The locks hold what pyproject.toml asks for, with hashes, and they are what is installed."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import runtime
from tests.support.building import REPOSITORY
from tests.support.requirements import DEMO, RUNTIME, SERVER, asked

LOCKS = REPOSITORY / "locks"
ENVIRONMENTS = {"export-light": ["export-light"], "export": ["export"], "dev": ["export", "dev", "server"]}


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
    needs = [*asked(*ENVIRONMENTS[name]), *map(Requirement, RUNTIME["dependency-groups"]["build"])]
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
    assert str(need) in RUNTIME["project"]["optional-dependencies"]["export"]
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


def test_the_version_is_in_one_place() -> None:
    """runtime/__init__.py. The others read it; the server's pin of the runtime is compared."""
    for project, path in ((RUNTIME, "runtime"), (SERVER, ".."), (DEMO, "../../runtime")):
        assert "version" in project["project"]["dynamic"]
        assert project["tool"]["hatch"]["version"]["path"] == f"{path}/__init__.py"
        assert project["build-system"] == RUNTIME["build-system"]
    assert f"gpt2-edge=={runtime.__version__}" in SERVER["project"]["dependencies"]
    assert DEMO["project"]["dependencies"] == ["gpt2-edge>=0.1.0"]
    assert RUNTIME["dependency-groups"]["build"] == RUNTIME["build-system"]["requires"]


def test_all_say_the_same_versions_of_python() -> None:
    assert {project["project"]["requires-python"] for project in (RUNTIME, SERVER, DEMO)} == {">=3.11"}
    said = [
        {found[1] for line in project["project"]["classifiers"] if (found := re.search(r":: 3\.(\d+)$", line))}
        for project in (RUNTIME, SERVER)
    ]
    assert said[0] == said[1] == {"11", "12", "13", "14"}
