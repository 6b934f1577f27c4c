"""The runtime alone: what it imports, what the wheel holds, and that the wheel is enough to write text."""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from pathlib import Path

import pytest

import runtime
from export import build
from tests.support.building import EVERY_CALL, QUICK, REPOSITORY, SCRIPT, run, write_tiny
from tests.support.environment import make_environment, required
from tests.support.wheels import build_wheel, copy_clone, install

ALLOWED = {"numpy", "onnxruntime", "tokenizers", "runtime"}
EXTRAS = {  # what modules that `import runtime` never loads may import besides
    "_pyinstaller": {"PyInstaller"},
    "generation/constrained": {"llguidance"},
    "integrations/lm_eval.py": {"lm_eval", "tqdm"},
    "server": {"fastapi", "h11", "jinja2", "prometheus_client", "pydantic", "starlette", "uvicorn"},
}
RUNS_WHAT_IT_READS = {"code", "marshal", "pickle", "runpy", "shelve"}
FOREIGN = ("torch", "transformers", "optimum", "onnx", "huggingface_hub", "export")
PROMPT = "A tiny model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    build.main([str(write_tiny(place / "tiny")), *QUICK, "--output", str(place / "tiny-int8")])
    return place / "tiny-int8"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy of the clone without a network."""
    place = tmp_path_factory.mktemp("wheel")
    return build_wheel(copy_clone(place / "clone"), place / "wheels")


def test_modules_import_what_the_wheel_requires() -> None:
    assert required() == ALLOWED - {"runtime"}
    for path in (REPOSITORY / "runtime").rglob("*.py"):
        name = path.relative_to(REPOSITORY / "runtime").as_posix()
        extras = {one for place, names in EXTRAS.items() if name.startswith(place) for one in names}
        foreign = imported(path) - ALLOWED - extras
        assert not foreign & RUNS_WHAT_IT_READS, f"{path} imports {foreign & RUNS_WHAT_IT_READS}"
        foreign -= sys.stdlib_module_names
        assert not foreign, f"{path} imports {foreign}"


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add((node.module or "").split(".")[0])
    return names


def test_names_are_imported_when_they_are_used(tmp_path: Path) -> None:
    """Ctrl-C could not be provided for while numpy and onnxruntime are imported by `import runtime` itself."""
    code = (
        "import sys, runtime; early = {'numpy', 'onnxruntime'} & {*sys.modules}; "
        "found = [getattr(runtime, name) for name in runtime.__all__]; "
        "print(early, set(runtime.__all__) <= set(dir(runtime)), len(found), runtime.load is runtime.api.load)"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.stdout == f"set() True {len(runtime.__all__)} True\n", done.stderr
    with pytest.raises(AttributeError, match="module 'runtime' has no attribute 'colour'"):
        _ = runtime.colour  # type: ignore[attr-defined]


def test_nothing_foreign_is_loaded_run_or_asked_for(model: Path, tmp_path: Path) -> None:
    done = run(sys.executable, EVERY_CALL, model, PROMPT, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen["text"]) > 0
    assert not {*FOREIGN, "socketserver", "http"} & {*seen["modules"]}
    assert seen["forbidden"] == []


def test_the_wheel_is_the_runtime_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.startswith("gpt2_edge-")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 320_000
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        information = {name for name in names if name.split("/")[0].endswith(".dist-info")}
        (metadata,) = (archive.read(name).decode() for name in information if name.endswith("/METADATA"))
        (entries,) = (archive.read(name).decode() for name in information if name.endswith("/entry_points.txt"))
    files = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "runtime").rglob("*.py")}
    modules = {name for name in files if not name.startswith("runtime/server/")}
    data = {name for name in names - information if not name.endswith(".py")}
    assert names - information - data == modules
    assert data == {"runtime/py.typed"}
    assert "gpt2-edge = runtime.__main__:main" in entries
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert {line.split()[1].split(">")[0] for line in needed} == required()
    assert any(name.endswith("/licenses/LICENSE") for name in information)


def test_the_wheel_alone_writes_text(wheel: Path, model: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", required())
    install(wheel, python)

    def output(*command: str | Path) -> str:
        done = run(*command, cwd=tmp_path, env={"PYTHONPATH": "", "GPT2_EDGE_MODEL": ""})
        assert done.returncode == 0, done.stderr
        return done.stdout

    find = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    assert output(python, "-c", find, *FOREIGN) == "['huggingface_hub']\n"  # which tokenizers requires
    assert str(REPOSITORY) not in output(python, "-c", "import runtime; print(runtime.__file__)")
    seen = json.loads(output(python, EVERY_CALL, model, PROMPT))
    assert not {*FOREIGN} & {*seen["modules"]}
    command = ["generate", PROMPT, "--model", str(model), "--max-new-tokens", "8"]
    assert output(python.with_name("gpt2-edge"), *command) == f"{seen['text']}\n"
    assert output(python, "-m", "runtime", *command) == f"{seen['text']}\n"


def test_the_build_uses_the_clone_where_the_wheel_is_installed(wheel: Path, model: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", required("export-light"))
    install(wheel, python)
    done = run(python, SCRIPT, model.parent / "tiny", "--no-reference", "--output", "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
