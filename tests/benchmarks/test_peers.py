"""The benchmarks' contenders: how each is made, checked and measured, with stand-ins for the peers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from export.checkpoint.config import Config
from tests.benchmarks import contenders, worker
from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.peers.checkpoint import Checkpoint
from tests.benchmarks.peers.gguf_file import stored_form, tensor_name
from tests.support.checkpoints import open_checkpoint, write_checkpoint

# contenders --------------------------------------------------------------------------------------------------------


def test_contenders_have_a_module_a_source_and_exact_requirements() -> None:
    for contender in CONTENDERS.values():
        assert (contenders.HERE / "peers" / f"{contender.peer}.py").is_file()
        assert contender.source in {*CONTENDERS, contenders.CHECKPOINT}
    for path in (contenders.HERE / "peers").glob("*.txt"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert lines and all(line.count("==") == 1 for line in lines), path


def ask_stand_in(asked: list[str]) -> Callable[..., object]:
    """A worker that makes empty folders, and agrees with transformers on 11 of 16 prompts."""

    def ask(contender: Contender, task: str, **given: object) -> object:
        asked.append(f"{contender.peer} {task}")
        if task == "convert":
            Path(str(given["folder"])).mkdir()
            return None
        return [int(index < 5 and contender.peer != "transformers") for index in range(contenders.N_CHECKS)]

    return ask


def test_folders_are_made_again_when_their_source_is_newer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(contenders, "PLACE", tmp_path)
    monkeypatch.setattr(contenders, "ask", ask_stand_in(asked))
    folder = contenders.prepare("optimum-int8", "demo")
    assert folder == tmp_path / "demo" / "optimum-int8"
    assert contenders.prepare("optimum-int8", "demo") == folder
    assert asked == ["optimum convert"] * 2  # fp32, then int8
    os.utime(tmp_path / "demo" / "optimum-fp32", (2e9, 2e9))
    contenders.prepare("optimum-int8", "demo")
    assert asked == ["optimum convert"] * 3


def test_our_folders_depend_on_all_of_the_build() -> None:
    recipe = contenders._recipe("edge")
    assert contenders.REPOSITORY / "export" / "build.py" in recipe
    assert contenders.REPOSITORY / "export" / "quantize" / "dense.py" in recipe
    assert contenders.REPOSITORY / "export" / "build.py" not in contenders._recipe("openvino")


def test_peer_with_other_ids_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contenders, "PLACE", tmp_path)
    monkeypatch.setattr(contenders, "ask", ask_stand_in([]))
    with pytest.raises(RuntimeError, match="69% of its ids"):
        contenders.check("ctranslate2-int8")
    assert contenders.check("transformers-fp32") == 1


def test_a_contender_that_cannot_be_installed_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(contenders, "PLACE", contenders.REPOSITORY / "build" / "nowhere")
    monkeypatch.setattr(contenders.venv, "create", lambda *_, **__: None)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution\n")
    monkeypatch.setattr(contenders.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError) as caught:
        contenders.environment(CONTENDERS["torchao-int8"])
    assert "it cannot be installed: ERROR: no matching distribution; try: python -m venv build/" in str(caught.value)
    assert str(caught.value).endswith("pip install -r tests/benchmarks/peers/torchao.txt")


def test_continuous_batching_shares_the_environment_and_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batching, plain = CONTENDERS["openvino-batching-int8"], CONTENDERS["openvino-int8"]
    assert batching.requirements == plain.requirements
    monkeypatch.setattr(contenders, "PLACE", tmp_path)
    monkeypatch.setattr(contenders, "ask", ask_stand_in([]))
    assert contenders.prepare("openvino-batching-int8", "demo") == contenders.prepare("openvino-int8", "demo")


def test_a_worker_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "LIMIT", 0.2)
    slow = "import time; time.sleep(60)"
    start = contenders.subprocess.Popen

    def start_slow(command: list[str], **given: Any) -> Any:
        return start([sys.executable, "-c", slow], **given)

    monkeypatch.setattr(contenders.subprocess, "Popen", start_slow)
    with pytest.raises(RuntimeError, match=r"measure took longer than 0.2 s"):
        contenders.ask(CONTENDERS["transformers-fp32"], "measure")


# the worker --------------------------------------------------------------------------------------------------------


class Counter:
    """A model that counts up, stopping early after `most` tokens."""

    most = 100

    def __init__(self, *_: object) -> None:
        self.prompts: list[list[int]] = []

    def generate(self, prompt: list[int], n_new: int, note: Callable[[int], object]) -> None:
        self.prompts.append(prompt)
        for id_ in range(min(n_new, self.most)):
            note(id_)

    def generate_rows(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        return [list(range(n_new)) for _ in prompts]


class Short(Counter):
    most = 5


class Cached(Counter):
    def __init__(self, folder: Path, threads: int, cache: str) -> None:
        super().__init__()
        self.most = {"fp32": 5, "int8": 100}[cache]


def peer_of(model: type) -> ModuleType:
    module = ModuleType("peer")
    module.Peer = model  # type: ignore[attr-defined]
    return module


SHAPE = {"prefills": [4, 64], "decodes": [4, 8], "batches": [2], "n_new": 16}


def test_worker_measures_what_is_asked_with_fresh_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Counter] = []

    class Noted(Counter):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            made.append(self)

    measured = worker.measure(peer_of(Noted), "folder", 1, vocab_size=50, seed=0, **SHAPE)
    assert set(measured) - {"peak"} == {
        "load", "cpu", "prefill 4", "prefill 64", "decode 4", "decode 8", "rows 2"
    }  # fmt: skip
    assert [len(prompt) for prompt in made[0].prompts] == [1000, 32, 4, 8, 64]
    assert all(0 <= id_ < 49 for prompt in made[0].prompts for id_ in prompt)  # 49 ends a text
    assert made[0].prompts[2] != made[0].prompts[3][:4]


def test_worker_refuses_a_peer_that_stops_early() -> None:
    with pytest.raises(ValueError, match="8 tokens were asked for, and 5 came"):
        worker.measure(peer_of(Short), "folder", 1, vocab_size=50, seed=0, **SHAPE)


def test_options_of_a_contender_reach_its_peer() -> None:
    assert contenders._load_options(CONTENDERS["gpt2-edge-int8-cache-fp32"], "measure") == {
        "options": {"cache": "fp32"}
    }
    assert contenders._load_options(CONTENDERS["gpt2-edge-int8"], "measure") == {}
    worker.measure(peer_of(Cached), "folder", 1, vocab_size=50, seed=0, **SHAPE, options={"cache": "int8"})
    with pytest.raises(ValueError, match="and 5 came"):
        worker.measure(peer_of(Cached), "folder", 1, vocab_size=50, seed=0, **SHAPE, options={"cache": "fp32"})


def test_prompts_differ_by_seed_alone() -> None:
    one, same, other = (worker.prompt_of(9, 50257, random.Random(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_peak_memory_is_at_least_what_is_held() -> None:
    if sys.platform == "win32":
        assert worker.peak_memory() is None
        return
    held = np.ones(20_000_000, np.uint8)
    assert held.nbytes < (worker.peak_memory() or 0) < 1e12


def test_failing_worker_gives_its_reason_in_one_line() -> None:
    with pytest.raises(RuntimeError) as caught:
        contenders.ask(Contender("none", "checkpoint", (1, 1)), "generate", folder="", threads=1, prompts=[])
    assert str(caught.value).startswith("AttributeError: ") and "\n" not in str(caught.value)


# checkpoints, and llama.cpp's names for them -----------------------------------------------------------------------


def test_checkpoint_reads_shards_by_gpt2_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": 1}', encoding="utf-8")
    save_file({"transformer.wte.weight": np.ones((2, 3), np.float16)}, tmp_path / "model-1.safetensors")
    save_file({"ln_f.bias": np.zeros(3, np.float32)}, tmp_path / "model-2.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert sorted(checkpoint.names) == ["ln_f.bias", "wte.weight"]
    assert checkpoint["wte.weight"].dtype == np.float32
    assert checkpoint.config == {"n_layer": 1}


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("wte.weight", "token_embd.weight"),
        ("wpe.weight", "position_embd.weight"),
        ("ln_f.bias", "output_norm.bias"),
        ("h.0.attn.c_attn.weight", "blk.0.attn_qkv.weight"),
        ("h.11.attn.c_proj.bias", "blk.11.attn_output.bias"),
        ("h.3.mlp.c_proj.weight", "blk.3.ffn_down.weight"),
    ],
)
def test_names_of_llama_cpp(name: str, stored: str) -> None:
    assert tensor_name(name) == stored


def test_every_tensor_has_one_name_of_llama_cpp() -> None:
    names = Config().tensor_shapes()
    assert len({tensor_name(name) for name in names}) == len(names)


def test_products_are_turned_for_llama_cpp() -> None:
    assert stored_form("h.0.mlp.c_fc.weight", np.ones((3, 12), np.float32)).shape == (12, 3)
    assert stored_form("wte.weight", np.ones((50, 3), np.float32)).shape == (50, 3)
    assert stored_form("wpe.weight", np.ones((9, 3), np.float32)).dtype == np.float32


# other runtimes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is converted quickly; 32 divides its widths."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_checkpoint(folder, n_layer=1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["executorch-int8", "torchao-int8", "torchao-int4", "openvino-batching-int8"])
def test_a_peer_computes_the_checkpoint(name: str, tiny: Path, tmp_path: Path) -> None:
    """Runs where the benchmark has installed the peer."""
    contender = CONTENDERS[name]
    if not contenders.is_installed(contender):
        pytest.skip(f"not installed: {contenders.install_command(contender)}")
    converted = contender if contender.converts else CONTENDERS[contender.source]
    folder, target = tmp_path / "model", tmp_path / "logits"
    contenders.ask(converted, "convert", source=str(tiny), folder=str(folder), **converted.options)
    ids = [*range(40, 64)]
    given = {"folder": str(folder), "threads": 1}
    shape = contenders.ask(contender, "logits", **given, windows=[ids], target=str(target))
    found = np.fromfile(target, np.float32).reshape(shape)
    with torch.no_grad():
        expected = open_checkpoint(tiny)(torch.tensor([ids])).logits[0].numpy()
    assert found.shape == expected.shape
    # Noise in int4 is off by a tenth of the deviation, a wrong conversion by the deviation itself.
    assert np.abs(found - expected).mean() < 0.2 * expected.std()
    assert contenders.ask(contender, "generate", **given, prompts=[ids]) == [int(found[-1].argmax())]


@pytest.mark.slow
def test_continuous_batching_decodes_rows(tiny: Path, tmp_path: Path) -> None:
    contender, folder = CONTENDERS["openvino-batching-int8"], tmp_path / "model"
    if not contenders.is_installed(contender):
        pytest.skip(f"not installed: {contenders.install_command(contender)}")
    contenders.ask(CONTENDERS[contender.source], "convert", source=str(tiny), folder=str(folder))
    given = {"folder": str(folder), "threads": 1}
    measured = contenders.ask(
        contender,
        "measure",
        **given,
        vocab_size=256,
        seed=0,
        prefills=[8],
        decodes=[8],
        batches=[2],
        n_new=4,
        n_long=40,
    )
    assert measured["decode 8"] > 0
    assert "rows 2" in measured  # the worker has refused rows of another length
