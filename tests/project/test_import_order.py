"""Packages import only what comes before them in the order of docs/architecture.md; no modules form a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.building import REPOSITORY

# The packages of one line may not import each other, except those of the first line. `runtime` is its __init__.
ORDER = [
    {"_*", "errors", "options", "option_names", "server_settings", "hardware"},
    {"graph"},
    {"model"},
    {"tokenization"},
    {"prefixes", "diagnostics"},
    {"generation", "scoring"},
    {"heads", "tasks"},
    {"api", "runtime"},
    {"server", "integrations"},
    {"cli"},
    {"__main__"},
    {"export"},
]
MAY_IMPORT_EACH_OTHER = [ORDER[0], {"api", "runtime"}]


def modules() -> dict[str, Path]:
    """Every module of both stages, by its dotted name."""
    paths = [path for stage in ("runtime", "export") for path in (REPOSITORY / stage).rglob("*.py")]
    dotted = (".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths)
    return dict(zip((name.removesuffix(".__init__") for name in dotted), paths, strict=True))


MODULES = modules()


def imports(tree: ast.AST, *, with_types: bool) -> set[str]:
    """The modules that a tree imports anywhere, inside functions too; `with_types`: for type checkers alone as well."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING" and not with_types:
        return set()
    if isinstance(tree, ast.Import):
        return {name.name for name in tree.names} & set(MODULES)
    if isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute"
        names = {f"{tree.module}.{name.name}" for name in tree.names}
        return {name if name in MODULES else str(tree.module) for name in names} & set(MODULES)
    return {found for child in ast.iter_child_nodes(tree) for found in imports(child, with_types=with_types)}


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
EVERY_IMPORT = {name: imports(tree, with_types=True) - {name} for name, tree in TREES.items()}
IMPORTS = {name: imports(tree, with_types=False) - {name} for name, tree in TREES.items()}


def package(module: str) -> str:
    stage, _, rest = module.partition(".")
    if stage == "export" or not rest:
        return stage
    name = rest.split(".")[0]
    return "_*" if name.startswith("_") and name != "__main__" else name


def level(name: str) -> int:
    found = [index for index, names in enumerate(ORDER) if name in names]
    assert found, f"{name} has no place in ORDER; add it, and to docs/architecture.md"
    return found[0]


def is_allowed(user: str, used: str) -> bool:
    together = user == used or any({user, used} <= group for group in MAY_IMPORT_EACH_OTHER)
    return together or level(used) < level(user)


def test_packages_import_only_what_comes_before_them() -> None:
    edges = {(name, target) for name, targets in EVERY_IMPORT.items() for target in targets}
    wrong = {edge for edge in edges if not is_allowed(package(edge[0]), package(edge[1]))}
    assert not wrong


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(reversed(error.args[1]))}") from None


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert_no_circle(IMPORTS)


def imports_inside(parent: str) -> dict[str, set[str]]:
    """What the modules and sub-packages of a package import of each other, a sub-package counted as one."""

    def part(name: str) -> str:
        return ".".join(name.split(".")[: parent.count(".") + 2])

    graph: dict[str, set[str]] = {}
    for name, targets in IMPORTS.items():
        if name.startswith(f"{parent}."):
            inside = {part(target) for target in targets if target.startswith(f"{parent}.")}
            graph.setdefault(part(name), set()).update(inside - {part(name)})
    return graph


PARENTS = sorted({name.rpartition(".")[0] for name in MODULES if name.startswith("runtime.")})


@pytest.mark.parametrize("parent", PARENTS)
def test_no_packages_inside_another_import_each_other_in_a_circle(parent: str) -> None:
    assert_no_circle(imports_inside(parent))


def test_the_order_names_only_packages_that_exist() -> None:
    assert set().union(*ORDER) == {package(name) for name in MODULES}
