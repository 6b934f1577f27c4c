"""Several models on one server: chosen by name, each with its own rows and queue, told apart in the metrics."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.cli import parser as cli
from runtime.diagnostics.check import check_folder
from runtime.model.integrity import CHECKSUMS
from runtime.model.model import Model
from tests.support.prefixing import folders as folders
from tests.support.serving import Running, running, wait_until

PROMPT = "Once upon a time"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def tiny(folders: dict[str, Path]) -> Iterator[Model]:
    with Model(folders["fp32"]) as one:
        yield one


@pytest.fixture(scope="module")
def server(demo_int8: Model, tiny: Model) -> Iterator[Running]:
    with running(demo_int8, tiny, alias=["demo", "org/tiny"], rows=2, queue=2) as one:
        yield one


@pytest.fixture(scope="module")
def nameless(demo_int8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a tokenizer, whose checksums are right."""
    folder = shutil.copytree(demo_int8_folder, tmp_path_factory.mktemp("nameless") / "nameless")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "tokenizer" not in line]
    (folder / CHECKSUMS).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return folder


def text_of(server: Running, **fields: Any) -> str:
    reply = server.post(prompt=PROMPT, max_tokens=8, temperature=0, **fields)
    assert reply.status == 200, reply.body
    text: str = reply.json["choices"][0]["text"]
    return text


def metric(server: Running, name: str, model: str) -> float:
    told = server.request("GET", "/metrics").body.decode()
    found = re.search(rf'^{name}{{(?:[^}}]*,)?model="{model}"[^}}]*}} (\S+)$', told, re.MULTILINE)
    assert found, told
    return float(found[1])


# by name ------------------------------------------------------------------------------------------------------------


def test_a_request_names_its_model_and_the_first_is_the_default(server: Running, demo_int8: Model, tiny: Model) -> None:
    expected = [runtime.generate(PROMPT, model=model, max_new_tokens=8) for model in (demo_int8, tiny)]
    assert expected[0] != expected[1]
    assert [text_of(server, model=name) for name in ("demo", "org/tiny")] == expected
    assert text_of(server) == text_of(server, model=None) == expected[0]
    assert server.post(prompt=PROMPT, max_tokens=1, model="org/tiny").json["model"] == "org/tiny"


def test_all_models_are_listed(server: Running, demo_int8: Model, tiny: Model) -> None:
    cards = server.request("GET", "/v1/models").json["data"]
    assert [card["id"] for card in cards] == ["demo", "org/tiny"]
    assert [card["max_model_len"] for card in cards] == [demo_int8.config.n_positions, tiny.config.n_positions]
    for path in ("org/tiny", "org%2Ftiny"):
        assert server.request("GET", f"/v1/models/{path}").json == cards[1]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (COMPLETIONS, {"prompt": PROMPT}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/tokenize", {"content": PROMPT}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
def test_an_unknown_name_is_told_what_there_is(server: Running, path: str, fields: dict[str, Any]) -> None:
    reply = server.post(path, model="gpt-4", **fields)
    assert (reply.status, reply.error["param"], reply.error["code"]) == (404, "model", "model_not_found")
    assert reply.error["message"] == "there is no model 'gpt-4' here; 'demo', 'org/tiny' are served"


def test_tokens_are_those_of_the_model(server: Running, demo_int8: Model, tiny: Model) -> None:
    for name, model in (("demo", demo_int8), ("org/tiny", tiny)):
        ids = server.post("/tokenize", content=PROMPT, model=name).json["tokens"]
        assert ids == model.encode(PROMPT)
        assert server.post("/detokenize", tokens=ids, model=name).json == {"content": PROMPT}
    assert len(tiny.encode(PROMPT)) > len(demo_int8.encode(PROMPT))
    refused = server.post("/detokenize", tokens=[tiny.config.vocab_size], model="org/tiny")
    assert f"vocabulary of {tiny.config.vocab_size}" in refused.error["message"]


# each has its own ---------------------------------------------------------------------------------------------------


def test_a_full_queue_is_that_of_its_model(server: Running) -> None:
    """Rows and queue are for each model: who asks the other one is answered."""
    long = {"prompt": PROMPT, "max_tokens": 400, "min_new_tokens": 400, "n": 4, "temperature": 1}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: server.post(**long))
        wait_until(lambda: server.engine.n_open == 4)
        assert server.post(prompt=PROMPT, max_tokens=1).error["code"] == "server_busy"
        assert text_of(server, model="org/tiny")
        server.engine.stop_all()
        assert waiting.result().status == 503


def test_replies_beside_another_model_are_those_alone(server: Running) -> None:
    fields = [{"model": name, "seed": seed} for name in ("demo", "org/tiny") for seed in (1, 2)]

    def ask(given: dict[str, Any]) -> str:
        reply = server.post(prompt=PROMPT, max_tokens=20, temperature=1, **given)
        text: str = reply.json["choices"][0]["text"]
        return text

    alone = [ask(one) for one in fields]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, fields)) == alone


def test_metrics_tell_models_apart(server: Running) -> None:
    names = ("gpt2_edge_new_tokens_total", "gpt2_edge_first_token_seconds_count", "gpt2_edge_request_seconds_count")
    before = {(name, model): metric(server, name, model) for name in names for model in ("demo", "org/tiny")}
    server.post(prompt=PROMPT, max_tokens=5, model="org/tiny", min_new_tokens=5)
    after = {key: metric(server, *key) for key in before}
    gained = {key: after[key] - before[key] for key in before}
    assert {key: value for key, value in gained.items() if value} == {
        (names[0], "org/tiny"): 5,
        (names[1], "org/tiny"): 1,
        (names[2], "org/tiny"): 1,
    }
    told = server.request("GET", "/metrics").body.decode()
    assert 'gpt2_edge_requests_total{model="org/tiny",path="/v1/completions",status="200"}' in told
    assert 'gpt2_edge_requests_total{model="",path="/metrics",status="200"}' in told


def test_health_names_the_model_that_has_ended(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    other = server.server.engines.find("org/tiny")
    monkeypatch.setattr(type(other), "is_alive", property(lambda engine: engine is not other))
    reply = server.request("GET", "/health")
    assert reply.status == 503
    assert "the decoding thread of org/tiny has ended" in reply.error["message"]


# the command --------------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says that does not start to serve."""
    status = cli.main(["serve", "--port", "0", *arguments])
    assert status == 1
    told = capsys.readouterr().err
    assert told.startswith("gpt2-edge: error: ")
    assert told.count("\n") == 1
    return told


def test_models_of_one_name_need_aliases(demo_int8_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(demo_int8_folder)
    told = refused(capsys, folder, folder)
    assert f"have the same name, '{demo_int8_folder.name}'; give each model an --alias of its own" in told
    assert told == refused(capsys, "--model", folder, "--model", folder)
    told = refused(capsys, folder, folder, "--alias", "a")
    assert "--alias is 'a', and the models are 2: give one name for each, in their order, or none" in told
    assert "'a'; give each" in refused(capsys, folder, folder, "--alias", "a", "--alias", "a")


def test_models_are_given_once(demo_int8_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["serve", "one", "two", "--model", str(demo_int8_folder)])
    assert f"the model is given twice: one two and --model {demo_int8_folder}" in capsys.readouterr().err


# without a tokenizer ------------------------------------------------------------------------------------------------


def test_a_model_without_a_tokenizer_is_not_served(nameless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, str(nameless))
    assert f"{nameless} has no tokenizer, and requests and replies of the server are texts" in told
    assert "add the tokenizer.json" in told


def test_a_model_without_a_tokenizer_is_checked(nameless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a build recorded is in ids, so the check needs no tokenizer."""
    assert check_folder(nameless).passed
    assert cli.main(["check", str(nameless)]) == 0
    assert capsys.readouterr().out.startswith("ok: this device runs the model as it should")
