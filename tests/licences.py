"""The licence of everything that the project and its extras require, as the installed packages state it.

python -m tests.licences    writes docs/licences.md
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution, distribution

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.building import REPOSITORY
from tests.support.requirements import RUNTIME, asked

FILE = REPOSITORY / "docs" / "licences.md"
HEAD = """\
# Licences of what is required

As the installed packages state them, on Linux; `make licences` writes this file. Required by: the runtime, one of the
extras of pyproject.toml, or the build of the wheels. Windows has tzdata too (Apache-2.0, of eval), and CUDA builds of
torch bring NVIDIA's libraries, under NVIDIA's licences.

| package | licence | required by |
|---|---|---|
"""


def table() -> list[str]:
    """A row a package."""
    needed = {"runtime": asked(), **{extra: asked(extra) for extra in RUNTIME["project"]["optional-dependencies"]}}
    needed["build"] = [*map(Requirement, RUNTIME["build-system"]["requires"])]
    found: dict[str, Distribution] = {}
    users: dict[str, list[str]] = {}
    for user, needs in needed.items():
        for name, package in closure(needs).items():
            found[name] = package
            users.setdefault(name, []).append(user)
    return [f"| {name} | {licence(package)} | {_said(users[name])} |" for name, package in sorted(found.items())]


def _said(users: list[str]) -> str:
    """What the runtime requires, all do; dev has every extra."""
    return "runtime" if "runtime" in users else ", ".join(user for user in users if user != "dev") or "dev"


def closure(needs: Iterable[Requirement]) -> dict[str, Distribution]:
    """What is required here, and what that requires: by name. What is for other platforms is left out."""
    found, seen = dict[str, Distribution](), set[tuple[str, str]]()
    waiting = _of_here(needs, "")
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        found[name] = found.get(name) or distribution(need.name)
        for extra in {"", *need.extras} - {extra for of, extra in seen if of == name}:
            seen.add((name, extra))
            waiting += _of_here(map(Requirement, found[name].requires or []), extra)
    return found


def _of_here(needs: Iterable[Requirement], extra: str) -> list[Requirement]:
    return [need for need in needs if not need.marker or need.marker.evaluate({"extra": extra})]


def licence(package: Distribution) -> str:
    """An SPDX expression, where the package has one; else its classifiers, else the first line of its licence."""
    said = package.metadata.get("License", "")
    if expression := package.metadata.get("License-Expression") or _as_expression(said):
        return expression
    classifiers = [text.split(" :: ") for text in package.metadata.get_all("Classifier") or []]
    if names := [parts[-1] for parts in classifiers if parts[:2] == ["License", "OSI Approved"]]:
        return " or ".join(names)
    files = package.metadata.get_all("License-File") or []
    texts = [said, *(package.read_text(f"licenses/{name}") or "" for name in files)]
    return next((line.strip() for text in texts for line in text.splitlines() if line.strip()), "not stated")


def _as_expression(text: str) -> str | None:
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        return None


if __name__ == "__main__":
    FILE.write_text(HEAD + "".join(f"{row}\n" for row in table()), encoding="utf-8")
