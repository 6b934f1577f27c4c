"""Models that many tests use, each made once a run."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from export import build
from export.quantize import texts
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from tests.support.building import QUICK

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# The run's own cache, not the user's; `pytest_unconfigure` deletes it.
_CACHE = tempfile.mkdtemp(prefix="gpt2-edge-")
os.environ["GPT2_EDGE_CACHE"] = _CACHE
# Tests that need the hub make their own.
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell starts background processes with SIGINT ignored, and every process under them inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "models" / "demo"
# Texts and vectors that are not part of the repository.
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_unconfigure() -> None:
    """At the end of the run. Not at exit of the process, which forks of it may reach too."""
    shutil.rmtree(_CACHE, ignore_errors=True)


def shared_data(name: str) -> Path:
    """A folder of test data that is not part of the repository; skips the test where it is missing."""
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{name}: this test's data is not part of the repository")
    return folder


@pytest.fixture(autouse=True)
def _short_calibration(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's own builds read an eighth of the text; slow tests, and models that many tests use, read it all."""
    if "slow" not in request.keywords and "full_calibration" not in request.fixturenames:
        monkeypatch.setattr(texts, "AMOUNTS", dict.fromkeys(texts.AMOUNTS, texts.Amount(1024, 512)))


@pytest.fixture
def full_calibration() -> None:
    """The test's builds read as much text as a user's."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's models are."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def demo_int8_folder(built: Path) -> Path:
    """The default build of the demo, optimum's reference kept beside it in `demo-reference`."""
    target = built / "demo-int8"
    build.main([str(DEMO), "--output", str(target), "--keep-reference", str(built / "demo-reference")])
    return target


@pytest.fixture(scope="session")
def demo_reference_folder(demo_int8_folder: Path) -> Path:
    """optimum's plain fp32 export of the demo."""
    return demo_int8_folder.parent / "demo-reference"


@pytest.fixture(scope="session")
def demo_fp32_folder(built: Path) -> Path:
    """The fused graph of the demo in fp32."""
    target = built / "demo-fp32"
    build.main([str(DEMO), "--output", str(target), "--precision", "fp32", "--no-reference"])
    return target


@pytest.fixture(scope="session")
def demo_block_folder(built: Path) -> Path:
    """The demo at int8 in blocks of 64."""
    target = built / "demo-block"
    build.main([str(DEMO), "--kernel", "block", *QUICK, "--output", str(target)])
    return target


@pytest.fixture(scope="session")
def demo_int4(built: Path) -> Iterator[Model]:
    """The demo at int4, not calibrated."""
    target = built / "demo-int4"
    build.main([str(DEMO), "--precision", "int4", "--no-calibration", *QUICK, "--output", str(target)])
    with Model(target) as model:
        yield model


@pytest.fixture(scope="session")
def demo_int8(demo_int8_folder: Path) -> Iterator[Model]:
    with Model(demo_int8_folder) as model:
        yield model


@pytest.fixture(scope="session")
def demo_fp32(demo_fp32_folder: Path) -> Iterator[Model]:
    with Model(demo_fp32_folder) as model:
        yield model


@pytest.fixture(scope="session")
def demo_reference(demo_reference_folder: Path) -> Iterator[Model]:
    with Model(demo_reference_folder) as model:
        yield model


@pytest.fixture(scope="module")
def torch_demo() -> Iterator[GPT2LMHeadModel]:
    """The demo in transformers, on one thread."""
    import torch
    from transformers import GPT2LMHeadModel

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield GPT2LMHeadModel.from_pretrained(DEMO, dtype=torch.float32).eval()
    torch.set_num_threads(n_threads)


def count_passes(monkeypatch: pytest.MonkeyPatch, *methods: str) -> list[int]:
    """How many ids each pass takes that one of these methods of a cache makes."""
    taken: list[int] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(InPlaceCache, name)
        return lambda cache, ids, **rest: (taken.append(len(ids)), original(cache, ids, **rest))[1]

    for name in methods:
        monkeypatch.setattr(InPlaceCache, name, counted(name))
    return taken


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids each pass through the model takes."""
    return count_passes(monkeypatch, "extend", "step")
