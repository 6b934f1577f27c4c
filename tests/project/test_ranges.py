"""The wheel alone with the oldest versions that it allows, and with the newest there are, beside the locked ones."""

from __future__ import annotations

import json
import os
import re
import sys
import venv
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import SparseTensorProto, TensorProto, helper
from packaging.version import Version

from export.verify.golden import TOLERANCE
from tests.support import range_report
from tests.support.building import REPOSITORY, run
from tests.support.requirements import asked
from tests.support.wheels import build_wheel, copy_clone

pytestmark = [pytest.mark.slow, pytest.mark.ranges]
SCRIPT = Path(range_report.__file__)
Report = dict[str, Any]


def oldest() -> dict[str, str]:
    """The lower bound of each requirement."""
    return {need.name: bound.version for need in asked() for bound in need.specifier if bound.operator == ">="}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    return build_wheel(copy_clone(place / "clone"), place / "wheels")


@pytest.fixture(scope="module", params=["oldest", "newest"])
def end(request: pytest.FixtureRequest) -> str:
    """Of the range."""
    return str(request.param)


@pytest.fixture(scope="module")
def python(end: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what pip finds for it: at its lower bounds, or without any other bound."""
    folder = tmp_path_factory.mktemp(end)
    venv.create(folder, with_pip=False)
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pins = [f"{name}=={version}" for name, version in oldest().items()] if end == "oldest" else []
    pip = [sys.executable, "-m", "pip", "--python", found, "--disable-pip-version-check"]
    done = run(*pip, "install", "--quiet", "--only-binary", ":all:", wheel, *pins, cwd=folder, timeout=400)
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"the {end} versions cannot be installed here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def folders(demo_fp32_folder: Path, demo_int8_folder: Path) -> tuple[Path, Path]:
    return demo_fp32_folder, demo_int8_folder


@pytest.fixture(scope="module")
def locked(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What the locked versions write."""
    return _report(Path(sys.executable), folders, tmp_path_factory.mktemp("scratch"), str(REPOSITORY))


@pytest.fixture(scope="module")
def report(python: Path, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return _report(python, folders, tmp_path_factory.mktemp("scratch"), "")


def _report(python: Path, folders: tuple[Path, Path], scratch: Path, path: str) -> Report:
    done = run(
        python, SCRIPT, *folders, scratch, cwd=scratch, env={"PYTHONPATH": path, "GPT2_EDGE_CACHE": str(scratch)}
    )
    assert done.returncode == 0, done.stderr
    found: Report = json.loads(done.stdout)
    return found


def test_the_documents_say_what_is_tested(report: Report, end: str) -> None:
    said = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    claims = {name: bounds for name, *bounds in re.findall(r"\b(\w+) (\d[\d.]*\d) to (\d[\d.]*\d)\b", said)}
    for name in oldest():
        low, high = map(Version, claims[name])
        tested = Version(report["versions"][name])
        assert low == Version(oldest()[name])
        assert tested == low if end == "oldest" else tested >= high


def test_the_wheel_is_what_runs(report: Report, locked: Report) -> None:
    assert not Path(report["runtime"]).is_relative_to(REPOSITORY)
    assert Path(locked["runtime"]).is_relative_to(REPOSITORY)


def test_ids_are_those_of_the_locked_versions(report: Report, locked: Report) -> None:
    for way, found in locked["found"].items():
        assert report["found"][way] == found, way


def test_log_probabilities_are_those_of_the_locked_versions(report: Report, locked: Report) -> None:
    for name, value in locked["near"].items():
        assert report["near"][name] == pytest.approx(value, abs=TOLERANCE["int8"] if "int8" in name else 1e-4), name


def test_the_check_passes(report: Report) -> None:
    assert report["failed checks"] == []


# where a graph can have weights, and what they can name: a file beside it, and what onnxruntime must not read
HIDDEN = ("initializer", "constant", "branch", "sparse")
NAMED = ("weights", "*/_ORT_MEM_ADDR_/*", "*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*", "../outside", "ABSOLUTE")
OPEN = """
import sys, onnxruntime
for path in sys.argv[1:]:
    try:
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {})
    except Exception as error:
        print("refused")
    else:
        print("read")
"""


def hide_weights(where: str, location: str) -> onnx.ModelProto:
    """A graph whose only weights are elsewhere."""
    offset = "65536" if location.startswith("*") else "0"
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": "16"}.items():
        weights.external_data.add(key=key, value=value)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [output])
    if where == "initializer":
        graph.initializer.append(weights)
    elif where == "constant":
        graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weights))
    elif where == "sparse":
        indices = helper.make_tensor("i", TensorProto.INT64, [4], range(4))
        graph.sparse_initializer.append(SparseTensorProto(values=weights, indices=indices, dims=[8]))
    else:
        graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        branch = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "b", [], [output], [weights])
        branch.output[0].name = "b"
        graph.node[0].CopyFrom(helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_onnxruntime_itself_refuses_addresses_and_other_folders(python: Path, tmp_path: Path) -> None:
    """The floor of its versions: what our check refuses first must not be all there is."""
    (tmp_path / "outside").write_bytes(bytes(64))
    paths = []
    for where in HIDDEN:
        for index, name in enumerate(NAMED):
            folder = tmp_path / f"{where}-{index}"
            folder.mkdir()
            (folder / "weights").write_bytes(bytes(64))
            if name.startswith("*"):
                # a file of this very name, for checks that it exists
                (folder / name).parent.mkdir(parents=True)
                (folder / name).write_bytes(bytes(64))
            location = str(tmp_path / "outside") if name == "ABSOLUTE" else name
            paths.append(folder / "model.onnx")
            paths[-1].write_bytes(hide_weights(where, location).SerializeToString())
    done = run(python, "-c", OPEN, *paths, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    # only the first of the names is a file in the folder
    assert done.stdout.split() == ["read", *["refused"] * (len(NAMED) - 1)] * len(HIDDEN)


def test_the_command_writes(python: Path, demo_fp32_folder: Path, locked: Report, tmp_path: Path) -> None:
    prompt = range_report.PROMPTS[0]
    command = ["generate", prompt, "--model", str(demo_fp32_folder), "--max-new-tokens", "40"]
    done = run(python.with_name("gpt2-edge"), *command, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert done.stdout.rstrip("\r\n") == locked["found"]["greedy"][0][2]
