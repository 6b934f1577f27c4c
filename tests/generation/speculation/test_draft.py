"""A draft model proposes, the model decides."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import complete, generate, stream, stream_many
from runtime.cli import parser as cli
from runtime.generation.speculation.proposers import Draft
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from tests.conftest import DEMO
from tests.support.building import byte_tokenizer
from tests.support.checkpoints import TINY, build_model, some_ids, write_checkpoint

PROMPT = "Once upon a time there was a little mouse who"
PROMPTS = [PROMPT, "The", "¿Qué tal, señor?"]


@pytest.fixture(scope="module")
def noise(demo_fp32_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Random weights with the demo's vocabulary, and fewer positions."""
    folder = tmp_path_factory.mktemp("noise") / "noise"
    with Model(demo_fp32_folder) as demo:
        write_checkpoint(folder, vocab_size=demo.config.vocab_size, bos_token_id=0, eos_token_id=0)
    shutil.copy(DEMO / "tokenizer.json", folder / "tokenizer.json")
    with Model(build_model(folder), threads=1) as model:
        yield model


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The layers of the model that runs, and how many ids, a pass each."""
    taken: list[tuple[int, int]] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(InPlaceCache, name)
        return lambda cache, ids, **rest: (taken.append((len(cache._buffers), len(ids))), original(cache, ids, **rest))[
            1
        ]

    for name in ("extend", "step"):
        monkeypatch.setattr(InPlaceCache, name, counted(name))
    return taken


@pytest.mark.parametrize("name", ["demo_fp32", "demo_int8", "demo_reference", "noise"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.8, "top_k": 10, "seed": 5},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "stop": [" the king", "."]},
        {"max_new_tokens": 150, "min_new_tokens": 150},
    ],
    ids=repr,
)
def test_no_draft_changes_a_continuation(
    demo_fp32: Model, name: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    options = {"model": demo_fp32, "max_new_tokens": 40, **options}
    found = complete(PROMPTS, draft=request.getfixturevalue(name), **options)
    expected = complete(PROMPTS, **options)
    assert [(one.ids, one.finish_reason) for one in found] == [(one.ids, one.finish_reason) for one in expected]


@pytest.mark.parametrize("name", ["demo_int8", "noise"])
def test_beyond_the_positions_of_either(demo_fp32: Model, name: str, request: pytest.FixtureRequest) -> None:
    """The noise has 96 positions, the demo 512."""
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 560, "min_new_tokens": 560, "overflow": "slide"}
    [found] = complete(PROMPT, draft=request.getfixturevalue(name), **options)
    [expected] = complete(PROMPT, **options)
    assert found.n_slides == expected.n_slides > 0
    assert found.ids == expected.ids


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 20, "seed": 3}], ids=repr)
def test_a_draft_that_is_the_model_is_always_right(
    demo_fp32: Model, passes: list[tuple[int, int]], options: dict[str, Any]
) -> None:
    [found] = complete(PROMPT, model=demo_fp32, draft=demo_fp32, max_new_tokens=100, min_new_tokens=100, **options)
    verified = [n for _, n in passes if n > 2][2:]  # after both took the prompt; a draft catches up with two ids
    assert found.n_tokens == 100
    assert len(verified) <= 16
    assert max(verified) == 9


def test_a_draft_that_is_always_wrong_is_seldom_asked(
    demo_fp32: Model, noise: Model, passes: list[tuple[int, int]]
) -> None:
    complete(PROMPT, model=demo_fp32, draft=noise, max_new_tokens=100, min_new_tokens=100)
    assert sum(layers == noise.config.n_layer for layers, _ in passes) < 20


def test_its_cache_keeps_what_came_true(noise: Model, passes: list[tuple[int, int]]) -> None:
    ids = some_ids(30)
    draft = Draft(noise, 90, lambda logits, _ids: int(logits.argmax()))
    proposed = draft.propose(ids, 5)
    passes.clear()
    following = [*ids, *proposed[:3], 7]
    again = draft.propose(following, 4)
    assert [n for _, n in passes] == [1, 1, 1, 1]
    fresh = Draft(noise, 90, lambda logits, _ids: int(logits.argmax()))
    assert again == fresh.propose(following, 4)


def test_beyond_its_positions_it_goes_on_from_the_latest_half(noise: Model) -> None:
    ids = some_ids(200)
    draft = Draft(noise, 500, lambda logits, _ids: int(logits.argmax()))
    long = [draft.propose(ids[:end], 3) for end in range(80, 200, 4)]
    assert all(len(proposed) == 3 for proposed in long)
    fresh = Draft(noise, 500, lambda logits, _ids: int(logits.argmax()))
    assert draft.propose(ids, 3) == fresh.propose(ids[draft._begin :], 3)


def test_every_function_takes_it(demo_fp32: Model, demo_int8: Model, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"model": demo_fp32, "max_new_tokens": 30}
    text = generate(PROMPT, **options)
    assert generate(PROMPT, draft=demo_int8, **options) == text
    assert generate(PROMPT, draft=str(demo_int8.folder), **options) == text
    assert "".join(stream(PROMPT, draft=demo_int8, **options)) == text
    assert "".join(piece for _, piece in stream_many([PROMPT], draft=demo_int8, **options)) == text
    folders = ["--model", str(demo_fp32.folder), "--draft", str(demo_int8.folder)]
    assert cli.main(["generate", PROMPT, "--max-new-tokens=30", *folders]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    assert cli.main(["complete", PROMPT, "--max-new-tokens=30", *folders]) == 0
    assert text in capsys.readouterr().out


def test_wrong_use_is_refused_by_name(demo_fp32: Model, demo_int8: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lookup 4 and a draft"):
        generate(PROMPT, model=demo_fp32, draft=demo_int8, lookup=4)
    with pytest.raises(ValueError, match=r"draft.*num_beams 2"):
        complete(PROMPT, model=demo_fp32, draft=demo_int8, num_beams=2)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        stream(PROMPT, model=demo_fp32, draft=tmp_path / "nowhere")
    with pytest.raises(TypeError, match="is 3"):
        stream(PROMPT, model=demo_fp32, draft=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["another", "the same"])
def test_another_vocabulary_is_refused(demo_fp32: Model, tmp_path: Path, size: str) -> None:
    n = TINY["vocab_size"] if size == "another" else demo_fp32.config.vocab_size
    write_checkpoint(tmp_path / "other", vocab_size=n)
    byte_tokenizer(257).save(str(tmp_path / "other" / "tokenizer.json"))
    with Model(build_model(tmp_path / "other"), threads=1) as other, pytest.raises(ValueError, match="vocabulary"):
        stream(PROMPT, model=demo_fp32, draft=other)
