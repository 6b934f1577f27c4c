"""Downloads from the hub, whose part a local stand-in plays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.building import QUICK, REPOSITORY, SCRIPT, error_line, run, write_tiny
from tests.support.hub_stand_in import HubStandIn, commit_of, serve

SMALL_CHUNKS = """
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 10_000  # what is written at once, and kept when the connection is cut
"""
DOWNLOAD = f"""{SMALL_CHUNKS}
import sys
from export import build
from export.checkpoint import hub
from export.errors import explain
try:
    print(hub.download(*sys.argv[1:]))
except (OSError, ValueError) as error:
    sys.exit(f"error: {{type(error).__name__}}: {{explain(error)}}")
"""
BUILD = f"""{SMALL_CHUNKS}
import sys
from export import build
sys.exit(build.run())
"""
NEEDED = ["config.json", "tokenizer.json", "model.safetensors"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint as its files."""
    folder = write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")
    return {name: (folder / name).read_bytes() for name in NEEDED}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubStandIn]:
    """The stand-in, with one model."""
    with serve() as hub:
        others = dict.fromkeys(("README.md", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"), b"not needed")
        hub.repositories["owner/tiny"] = {"main": files | others}
        yield hub


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
    local = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*", "PYTHONPATH": str(REPOSITORY)}
    return {**kept, **local, "HF_HUB_OFFLINE": "0", **more}


def download(endpoint: str, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`hub.download` in a process of its own: its settings are read when it is imported."""
    return run(sys.executable, "-c", DOWNLOAD, *arguments, cwd=home, env=environment(endpoint, home, **more))


def downloaded(endpoint: str, home: Path, *arguments: str, **more: str) -> dict[str, bytes]:
    """The files that a download put into the cache."""
    done = download(endpoint, home, *arguments, **more)
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in Path(done.stdout.splitlines()[-1]).iterdir()}


def refused(endpoint: str, home: Path, *arguments: str, **more: str) -> str:
    """What a download that fails says."""
    done = download(endpoint, home, *arguments, **more)
    assert done.returncode == 1
    return error_line(done.stderr)


def test_fetches_what_a_build_needs_and_once(hub: HubStandIn, files: dict[str, bytes], tmp_path: Path) -> None:
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny") == files
    assert sorted(hub.asked("GET")) == sorted(NEEDED)
    hub.requests.clear()
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny") == files
    assert hub.asked("GET") == []
    hub.requests.clear()
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny", HF_HUB_OFFLINE="1") == files
    assert hub.requests == []
    hub.failing = True
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny") == files
    assert downloaded(f"http://127.0.0.1:{unused_port()}", tmp_path, "owner/tiny") == files


def test_builds_from_a_hub_id(hub: HubStandIn, tmp_path: Path) -> None:
    hub.repositories["tiny"] = {"v2": hub.repositories["owner/tiny"]["main"]}
    command: list[str | Path] = [sys.executable, SCRIPT, "tiny", "--revision", "v2", *QUICK]
    done = run(*command, cwd=tmp_path, env=environment(hub.endpoint, tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "models" / "tiny-int8" / "README.md").read_text(encoding="utf-8")
    assert 'base_model: "tiny"' in card
    assert commit_of("tiny", "v2") in card


def test_fetches_optional_files(hub: HubStandIn, files: dict[str, bytes], tmp_path: Path) -> None:
    optional = {"generation_config.json": b"{}", "tokenizer_config.json": b"{}", "chat_template.jinja": b"hi"}
    optional |= {"special_tokens_map.json": b"{}", "added_tokens.json": b"{}"}
    hub.repositories["owner/tiny"]["main"].update(optional)
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny") == files | optional


def test_fetches_the_older_tokenizer_files(hub: HubStandIn, files: dict[str, bytes], tmp_path: Path) -> None:
    older = {"vocab.json": b"{}", "merges.txt": b""}
    hub.repositories["owner/tiny"]["main"].update(older)
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny") == files
    del hub.repositories["owner/tiny"]["main"]["tokenizer.json"]
    shutil.rmtree(tmp_path / "hub")
    expected = {name: content for name, content in files.items() if name != "tokenizer.json"} | older
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny") == expected


def test_fetches_the_pickles_that_the_index_names(hub: HubStandIn, files: dict[str, bytes], tmp_path: Path) -> None:
    shards = {f"pytorch_model-0000{n}-of-00002.bin": b"shard" * n for n in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    main = hub.repositories["owner/tiny"]["main"]
    del main["model.safetensors"], main["pytorch_model.bin"]
    main.update(shards | {"pytorch_model.bin.index.json": index, "pytorch_model-00001-of-00003.bin": b"not needed"})
    assert "a pytorch_model.bin is a pickle" in refused(hub.endpoint, tmp_path, "owner/tiny")
    done = run(
        sys.executable,
        "-c",
        DOWNLOAD.replace("hub.download(*sys.argv[1:])", "hub.download(sys.argv[1], allow_pickle=True)"),
        "owner/tiny",
        cwd=tmp_path,
        env=environment(hub.endpoint, tmp_path),
    )
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_bytes() for path in Path(done.stdout.splitlines()[-1]).iterdir()}
    assert found == {name: files[name] for name in NEEDED[:2]} | shards | {"pytorch_model.bin.index.json": index}


def test_fetches_the_shards_that_the_index_names(hub: HubStandIn, files: dict[str, bytes], tmp_path: Path) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": b"shard" * n for n in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    main = hub.repositories["owner/tiny"]["main"]
    main.update(shards | {"model.safetensors.index.json": index, "model-00001-of-00003.safetensors": b"not needed"})
    del main["model.safetensors"]
    expected = {name: files[name] for name in NEEDED[:2]} | shards | {"model.safetensors.index.json": index}
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny") == expected


def test_resumes_a_connection_that_was_cut(hub: HubStandIn, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = 100_000
    done = download(hub.endpoint, tmp_path, "owner/tiny")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors: the connection was cut; going on" in done.stdout
    asked = [request for request in hub.requests if request.host == "localhost"]
    assert [request.range for request in asked] == [None, "bytes=100000-"]
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny", HF_HUB_OFFLINE="1") == files


def test_a_connection_that_is_cut_every_time(hub: HubStandIn, tmp_path: Path) -> None:
    hub.cut_always["model.safetensors"] = 50_000
    assert "is not reached" in refused(hub.endpoint, tmp_path, "owner/tiny")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_an_interrupt_ends_a_download_which_the_next_build_resumes(hub: HubStandIn, tmp_path: Path) -> None:
    hub.stall["model.safetensors"] = 100_000
    command = [sys.executable, "-c", BUILD, "owner/tiny", *QUICK]
    env = environment(hub.endpoint, tmp_path / "home")
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert hub.stalled.wait(60)
        time.sleep(0.2)  # the bytes arrive
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=10)
    assert process.returncode == 130
    assert shown.endswith("interrupted: nothing was changed\n")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    done = run(*command, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert hub.requests[-1].range == "bytes=100000-"


def test_a_revision(hub: HubStandIn, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repositories["owner/tiny"]["v2"] = files | {"generation_config.json": b"{}"}
    assert "generation_config.json" not in downloaded(hub.endpoint, tmp_path, "owner/tiny")
    assert "generation_config.json" in downloaded(hub.endpoint, tmp_path, "owner/tiny", "v2")
    done = download(hub.endpoint, tmp_path, "owner/tiny", commit_of("owner/tiny", "v2"), HF_HUB_OFFLINE="1")
    assert Path(done.stdout.strip()).name == commit_of("owner/tiny", "v2")
    assert "FileNotFoundError: owner/tiny has no revision 'v3'" in refused(hub.endpoint, tmp_path, "owner/tiny", "v3")


@pytest.mark.parametrize("token", [None, "mine"])
def test_a_model_that_is_not_there(hub: HubStandIn, tmp_path: Path, token: str | None) -> None:
    more = {"HF_TOKEN": token} if token else {}
    message = refused(hub.endpoint, tmp_path, "owner/other", **more)
    assert "FileNotFoundError: no folder 'owner/other' here, and the hub has no such model" in message
    assert "HF_TOKEN" in message


def test_a_gated_model_asks_for_the_token_and_takes_it(
    hub: HubStandIn, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.tokens["owner/tiny"] = "mine"
    message = refused(hub.endpoint, tmp_path, "owner/tiny")
    assert "PermissionError: owner/tiny is gated: accept its terms" in message
    assert "HF_TOKEN" in message
    hub.requests.clear()
    assert downloaded(hub.endpoint, tmp_path, "owner/tiny", HF_TOKEN="mine") == files
    assert {request.token for request in hub.requests if request.host == "127.0.0.1"} == {"mine"}
    assert {request.token for request in hub.requests if request.host == "localhost"} == {None}


def test_a_token_that_is_not_valid(hub: HubStandIn, tmp_path: Path) -> None:
    message = refused(hub.endpoint, tmp_path, "owner/tiny", HF_TOKEN="expired")
    assert "PermissionError: the hub does not give owner/tiny to you: check HF_TOKEN" in message


def test_no_network_is_said_at_once(tmp_path: Path) -> None:
    start = time.monotonic()  # most of the time is Python's own
    message = refused(f"http://127.0.0.1:{unused_port()}", tmp_path, "owner/tiny")
    assert time.monotonic() - start < 20
    assert "ConnectionError: no folder 'owner/tiny' here, and the hub, which may have it, is not reached" in message


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "is not reached" in refused(endpoint, tmp_path, "owner/tiny", HF_HUB_ETAG_TIMEOUT="1")


def test_a_hub_that_is_down(hub: HubStandIn, tmp_path: Path) -> None:
    hub.failing = True
    message = refused(hub.endpoint, tmp_path, "owner/tiny")
    assert "ConnectionError" in message
    assert "503" in message


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": None}, "owner/tiny is no checkpoint of transformers: it has no config.json"),
        ({"config.json": b'{"model_type": "llama"}'}, "model_type is 'llama', 'gpt2' or 'openai-gpt' is needed"),
        (
            {"tokenizer.json": None},
            "owner/tiny has no tokenizer, neither tokenizer.json nor vocab.json and merges.txt: --tokenizer FOLDER",
        ),
        ({"tokenizer.json": None, "vocab.json": b"{}"}, "owner/tiny has no tokenizer, neither"),
        ({"model.safetensors": None}, "from_pretrained('owner/tiny').save_pretrained('DIR')"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_repository_of_another_kind_is_refused_before_its_weights_are_fetched(
    hub: HubStandIn, tmp_path: Path, change: Mapping[str, bytes | None], message: str
) -> None:
    main = {**hub.repositories["owner/tiny"]["main"], **change}
    hub.repositories["owner/tiny"]["main"] = {name: content for name, content in main.items() if content is not None}
    assert message in refused(hub.endpoint, tmp_path, "owner/tiny")
    assert not [path for path in hub.asked("GET") if path.endswith((".safetensors", ".bin"))]


def test_a_part_in_the_cache_is_not_enough(hub: HubStandIn, tmp_path: Path) -> None:
    weights = hub.repositories["owner/tiny"]["main"].pop("model.safetensors")
    refused(hub.endpoint, tmp_path, "owner/tiny")
    hub.repositories["owner/tiny"]["main"]["model.safetensors"] = weights
    message = refused(hub.endpoint, tmp_path, "owner/tiny", HF_HUB_OFFLINE="1")
    assert "the hub is not reached, and in the local cache owner/tiny has no model.safetensors" in message
