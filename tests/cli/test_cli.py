"""The command `gpt2-edge`, in a process of its own: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import generate
from runtime.cli import parser as cli
from runtime.model.model import Model
from tests.conftest import REPOSITORY
from tests.support.command_line import environment, posix_only

Run = Callable[..., subprocess.CompletedProcess[bytes]]
PROMPT = "¿Qué tal, señor? 🙂 Once"


@pytest.fixture
def run(demo_fp32_folder: Path) -> Run:
    """The command with some arguments, the demo as its default model."""

    def run_command(*arguments: str, stdin: bytes = b"", **changed: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "runtime", *arguments]
        env = environment(demo_fp32_folder, **changed)
        options: Any = {"capture_output": True, "cwd": REPOSITORY, "timeout": 60}
        return subprocess.run(command, check=False, input=stdin, env=env, **options)

    return run_command


def said(result: subprocess.CompletedProcess[bytes]) -> str:
    """What a failed command says: one line, and nothing on standard output."""
    message = result.stderr.decode()
    assert result.stdout == b""
    assert "Traceback" not in message
    return message


# text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 20},
        {"max_new_tokens": 20, "temperature": 0.9, "top_k": 50, "top_p": 0.9, "seed": 7},
        {"max_new_tokens": 20, "temperature": 1.5, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 8},
    ],
    ids=repr,
)
def test_text_is_that_of_generate_and_all_of_standard_output(
    run: Run, demo_fp32: Model, options: dict[str, Any]
) -> None:
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    result = run("generate", PROMPT, *arguments)
    expected = generate(PROMPT, model=demo_fp32, **options) + "\n"
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", expected.replace("\n", os.linesep).encode())


def test_stop_may_be_repeated(run: Run, demo_fp32: Model) -> None:
    text = generate(PROMPT, model=demo_fp32, max_new_tokens=30)
    first, second = text[12:15], text[8:11]
    result = run("generate", PROMPT, "--max-new-tokens=30", f"--stop={first}", f"--stop={second}")
    assert result.stdout.decode().splitlines() == [generate(PROMPT, model=demo_fp32, stop=[first, second])]


def test_a_stop_string_may_be_the_end_of_a_line(run: Run, demo_fp32: Model) -> None:
    result = run("generate", PROMPT, "--max-new-tokens=200", r"--stop=\n")
    assert result.stdout.decode() == generate(PROMPT, model=demo_fp32, max_new_tokens=200, stop="\n") + os.linesep


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(r"\n", "\n"), (r"\r\n\t", "\r\n\t"), (r"\\n", r"\n"), (r"\d", r"\d"), ("\\", "\\"), ("ñ\n", "ñ\n")],
)
def test_escapes_of_a_stop_string(typed: str, meant: str) -> None:
    assert cli.argument_parser().parse_args(["generate", "a", f"--stop={typed}"]).option_stop == [meant]


@pytest.mark.parametrize(
    "locale", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_standard_input_and_output_are_utf8_in_every_locale(run: Run, demo_fp32: Model, locale: dict[str, str]) -> None:
    result = run("generate", "-", "--max-new-tokens=5", stdin=PROMPT.encode(), **locale)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().splitlines() == generate(PROMPT, model=demo_fp32, max_new_tokens=5).splitlines()


def test_an_argument_is_utf8_in_the_c_locale(run: Run, demo_fp32: Model) -> None:
    result = run("generate", PROMPT, "--max-new-tokens=5", LC_ALL="C")
    assert result.stdout.decode().splitlines() == generate(PROMPT, model=demo_fp32, max_new_tokens=5).splitlines()


def test_output_that_is_not_ascii_needs_no_locale(run: Run, demo_fp32: Model) -> None:
    texts = {id_: demo_fp32.tokenizer.decode([id_]) for id_ in range(demo_fp32.config.vocab_size)}
    id_ = next(id_ for id_, text in texts.items() if not text.isascii() and "\ufffd" not in text)
    harsh = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = run("generate", "Once", "--max-new-tokens=3", f"--logit-bias={id_}=1000", **harsh)
    assert result.stdout.decode().splitlines() == [texts[id_] * 3]


def test_json_is_the_whole_completion(run: Run, demo_fp32: Model) -> None:
    result = run("generate", PROMPT, "--max-new-tokens=5", "--json")
    completion = json.loads(result.stdout)
    assert completion["text"] == generate(PROMPT, model=demo_fp32, max_new_tokens=5)
    assert (len(completion["ids"]), completion["finish_reason"]) == (5, "length")


def test_what_is_measured_goes_to_standard_error(run: Run) -> None:
    plain, verbose = run("generate", "Once"), run("generate", "Once", "--verbose")
    assert plain.stdout == verbose.stdout
    assert b"tokens/s" in verbose.stderr


# help --------------------------------------------------------------------------------------------------------------


def test_the_version(run: Run) -> None:
    assert run("--version").stdout.decode().split() == ["gpt2-edge", runtime.__version__]


def test_the_command_alone_shows_usage(run: Run) -> None:
    result = run()
    assert (result.returncode, result.stdout) == (2, b"")
    shown = result.stderr.decode()
    assert shown.startswith("usage: gpt2-edge")
    assert all(f"\n    {name} " in shown for name in ("generate", "serve", "info"))


def test_help_states_the_defaults() -> None:
    commands = cli.argument_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for name in ("generate", "complete"):
        about = " ".join(commands[name].format_help().split())  # type: ignore[index]
        assert "greedy, as in Python), which soon repeats itself; --temperature 0.8 --top-p 0.9 samples" in about
    assert "the default where prompts are typed at a terminal" in " ".join(
        commands["generate"].format_help().split()  # type: ignore[index]
    )


def test_help_shows_an_example(run: Run) -> None:
    result = run("generate", "--help")
    text = result.stdout.decode()
    assert result.returncode == 0
    assert "example" in text
    assert 'gpt2-edge generate "' in text
    assert "--max-new-tokens" in text
    assert "generate" in run("--help").stdout.decode()


# wrong usage: 2, failure: 1 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["write"], "write"),
        (["gnerate", "a"], "(did you mean generate?)"),
        (["generate", "--temprature", "0.8", "a"], "--temprature (did you mean --temperature?)"),
        (["generate", "a", "--temprature=0.8"], "--temprature=0.8 (did you mean --temperature?)"),
        (["generate", "a", "--overflow=sldie"], "(did you mean slide?)"),
        (["serve", "--max-token=8"], "(did you mean --max-tokens?)"),
        (["info", "a", "--model=b"], "the model is given twice: a and --model b"),
        (["generate", "a", "--seed=3"], "seed=3 has no effect"),
        (["complete", "a", "--seed=3"], "seed=3 has no effect"),
        (["generate", "a", "b"], "b"),
        (["generate", "a", "--max-new-tokens=many"], "--max-new-tokens"),
        (["generate", "a", "--max-new-tokens=0"], "max_new_tokens"),
        (["generate", "a", "--temperature=nan"], "temperature"),
        (["generate", "a", "--temperature=-1"], "temperature"),
        (["generate", "a", "--top-k=5"], "temperature"),
        (["generate", "a", "--stop="], "stop"),
        (["generate", "a", "--seed=-1"], "seed"),
        (["generate", "a", "--threads=0"], "threads"),
        (["generate", "a", "--temperature=inf"], "must be finite and at least 0"),
        (["generate", "a", "--colour"], "--colour"),
        (["generate", "a", "--n=2"], "--n=2"),  # complete's, not short for --no-repeat-ngram-size
        (["complete", "a", "--logprobs=2"], "--json"),
        (["generate", "a", "--logit-bias=x"], "'x' is not ID=NUMBER"),
        (["generate", "a", "--logit-bias=3=nan"], "logit_bias has nan for token id 3"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    out, message = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert message.startswith("gpt2-edge")
    assert message.endswith("; --help shows what there is\n")
    assert len(message.splitlines()) == 1
    assert named in message


@pytest.mark.parametrize(
    ("arguments", "stdin", "named"),
    [
        (["Once", "--model=no-such-model"], b"", "no-such-model"),
        (
            ["Once", "--max-new-tokens=600"],
            b"",
            "512 positions; max_new_tokens can be at most 511, or --overflow trunc",
        ),
        (["-"], b"z" * 10**6, "shorten it, or --overflow truncate_left"),
        (["-"], b"ab\xff", "UTF-8"),
    ],
)
def test_a_failure_is_1_and_one_line(run: Run, arguments: list[str], stdin: bytes, named: str) -> None:
    result = run("generate", *arguments, stdin=stdin)
    message = said(result)
    assert result.returncode == 1
    assert message.startswith("gpt2-edge: error: ")
    assert len(message.splitlines()) == 1
    assert named in message


@posix_only
def test_an_argument_that_is_not_utf8_is_a_failure(run: Run) -> None:
    result = run("generate", os.fsdecode(b"ab\xff"))
    assert (result.returncode, "surrogate" in said(result)) == (1, True)


@posix_only
@pytest.mark.parametrize("command", ["info", "check", "generate"])
def test_a_path_that_is_not_utf8_is_named(run: Run, command: str) -> None:
    path = os.fsdecode(b"/no-such-\xff")
    result = run(command, *(["Once", "--model"] if command == "generate" else []), path)
    assert (result.returncode, "/no-such-\\udcff" in said(result)) == (1, True)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("too\n  large"), "not enough memory: too large"),
        (ImportError("an extra"), "an extra"),
        (PermissionError(13, "Permission denied", "here"), "here: Permission denied"),
        (OSError("the socket"), "the socket"),
    ],
)
def test_a_failure_of_any_kind_is_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_folder: object) -> None:
        raise error

    monkeypatch.setattr("runtime.diagnostics.info.describe", fail)
    assert cli.main(["info", "folder"]) == 1
    assert capsys.readouterr().err == f"gpt2-edge: error: {told}\n"
