"""The benchmarks' contenders: how each is made, checked and measured, with stand-ins for the peers."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.checkpoint.config import Config
from tests.benchmarks import contenders, worker
from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.peers.checkpoint import Checkpoint
from tests.benchmarks.peers.gguf_file import stored_form, tensor_name

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
