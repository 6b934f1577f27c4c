"""What README shows works: its Python and its commands run, targets and files exist."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime
from export.arguments import argument_parser as build_parser
from runtime.cli.interactive import SAMPLING
from runtime.cli.parser import argument_parser
from runtime.options import Options
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0] for _, block in BLOCKS for line in block.splitlines()]
COMMANDS = [line.split("| ")[-1] for line in LINES if re.match(r"(printf .*\| )?gpt2-edge ", line)]
PYTHON = [block for language, block in BLOCKS if language == "python"]
STORY = "The old king had three sons. One day the youngest found a golden ring in the forest."
BUILDS = [line for line in LINES if line.startswith("python export/build.py")]
SHELL = ("", "sh", "bash", "shell", "console")  # languages of blocks of commands
LISTING = r"\w+/ "  # a block that begins so shows folders
OUTSIDE = {  # commands that need what a test has not
    r"make ": "it makes the environment that tests run in, or takes as long as all of them",
    r"(python3? -m )?(pip|uv|npm|apt-get|docker|git) ": "what an index or a registry has",
    r"python export/build\.py (?!--help|models/demo|random:)": "what the hub has",
    r"(scp|ssh|dask) ": "other machines",
}
READERS = {  # files that are the reader's
    "lambada_test.jsonl": json.dumps({"text": STORY}) + "\n",
    "rules.txt": STORY * 16,
    "corpus.txt": f"{STORY}\n{STORY}\n",
    "prompts.txt": STORY,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    given = argument_parser().parse_args(shlex.split(command.split(" < ")[0])[1:])
    assert callable(given.command)


@pytest.mark.parametrize("command", BUILDS)
def test_builds_parse(command: str) -> None:
    assert build_parser().parse_args(shlex.split(command)[2:]).checkpoint


def test_there_are_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {
        "generate", "complete", "score", "perform", "evaluate", "prefix", "serve", "check", "info",
    }  # fmt: skip
    assert BUILDS


@pytest.mark.parametrize("code", PYTHON)
def test_python_compiles(code: str) -> None:
    compile(code, "README.md", "exec")


def commands_of(block: str) -> Iterator[str]:
    """One a line, or as many lines as it is continued on; where some begin with $, the others are what they print."""
    lines = block.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in prompted or lines:
        if command := re.split(r"(?:^|\s)#", line)[0].strip():
            yield command


SHOWN = [
    command
    for language, block in BLOCKS
    if language in SHELL and not re.match(LISTING, block)
    for command in commands_of(block)
]
RUN = [command for command in SHOWN if not any(re.match(pattern, command) for pattern in OUTSIDE)]


@pytest.fixture
def place(demo_int8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the repository after `make demo`, with the reader's files."""
    for path in REPOSITORY.iterdir():
        if path.name not in ("models", "build") and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path, target_is_directory=path.is_dir())
    shutil.copytree(demo_int8_folder, tmp_path / "models" / "demo-int8")
    (tmp_path / "models" / "demo").symlink_to(REPOSITORY / "models" / "demo", target_is_directory=True)
    for name, text in READERS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the commands are for a POSIX shell")
@pytest.mark.parametrize("command", RUN)
def test_commands_run(place: Path, command: str) -> None:
    if re.match("gpt2-edge serve", command):
        process = subprocess.Popen(f"exec {command} --port 0", shell=True, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        assert "Ctrl-C stops" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert (process.communicate(timeout=60), process.returncode) == ((None, ""), 130)
        return
    done = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8", timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout or re.search(r"> ?\S+$|--output ", command)


def test_most_commands_run() -> None:
    assert len(RUN) > 9


@contextlib.contextmanager
def stood_in(code: str) -> Iterator[str]:
    """The code with addresses of this machine in place of those that README names."""
    with contextlib.ExitStack() as stack:
        if "127.0.0.1:8000" in code:
            from tests.support.serving import running

            server = stack.enter_context(running(stack.enter_context(runtime.load("models/demo-int8"))))
            code = code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        if "scheduler:8786" in code:
            from distributed import LocalCluster

            cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
            code = code.replace("scheduler:8786", stack.enter_context(cluster).scheduler_address)
            code = code.replace("/models/gpt2-int8", "models/demo-int8")
        yield code


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of other projects
@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with runtime.load("models/demo-int8") as model, stood_in(code) as code_here:
        exec(code_here, {"runtime": runtime, "model": model, "article": STORY, "passage": STORY})
    assert "print(" not in code or capsys.readouterr().out


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`?\bmake ([a-z-]+)\b", README))
    assert {"demo", "test", "bench-quick"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets - {"makes"}), targets


def test_defaults_are_as_they_are_stated() -> None:
    table = README[README.index("| | temperature | top_p | new tokens |") :].split("\n\n")[0].splitlines()[2:]
    stated = [[cell.strip() for cell in row.strip("|").split("|")][1:] for row in table]
    plain, server = Options(), pytest.importorskip("runtime.server.openai.completions", exc_type=ImportError)
    script = (REPOSITORY / "runtime" / "server" / "transport" / "static" / "page.js").read_text(encoding="utf-8")
    sliders = dict(re.findall(r'^  \["(\w+)", [\d.]+, [\d.]+, [\d.]+, ([\d.]+),', script, re.MULTILINE))
    assert (plain.temperature, plain.top_p) == (0, 1)
    assert stated == [
        ["0 (greedy)", "off", str(plain.max_new_tokens)],
        [str(SAMPLING["temperature"]), str(SAMPLING["top_p"]), str(plain.max_new_tokens)],
        [sliders[name] for name in ("temperature", "top_p", "max_tokens")],
        ["1", "off", str(server.DEFAULT_MAX_TOKENS)],
    ]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target
