"""Every command of `gpt2-edge`, in this process: what it prints is what the function of its name returns."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from tests.conftest import REPOSITORY
from tests.support.command_line import Command

PROMPT = "Once upon a time there was a little mouse who"


# generate ----------------------------------------------------------------------------------------------------------


def test_generate_prints_the_text(command: Command, demo_fp32: Model) -> None:
    text = runtime.generate(PROMPT, model=demo_fp32, max_new_tokens=8)
    assert command("generate", PROMPT, "--max-new-tokens=8") == (0, f"{text}\n", "")
    assert command("generate", "-", "--max-new-tokens=8", stdin=PROMPT) == (0, f"{text}\n", "")
    assert command("generate", "--max-new-tokens=8", stdin=PROMPT) == (0, f"{text}\n", "")


def test_generate_as_json_and_verbose(command: Command, demo_fp32: Model) -> None:
    status, out, err = command("generate", PROMPT, "--max-new-tokens=8", "--json", "--verbose")
    [expected] = runtime.complete(PROMPT, model=demo_fp32, max_new_tokens=8)
    found = json.loads(out)
    fixed = ["text", "ids", "finish_reason", "logprobs", "seed", "n_prompt_tokens", "prompt_index"]
    assert {name: found[name] for name in fixed} == {name: getattr(expected, name) for name in fixed}
    assert set(found) >= {field.name for field in dataclasses.fields(expected)}
    assert status == 0
    assert err.startswith(f"{expected.n_prompt_tokens} prompt tokens, 8 new in ")


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_a_terminal_asks_for_prompts_until_control_d(demo_fp32_folder: Path, demo_fp32: Model) -> None:
    import pty

    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "runtime", "generate", "--max-new-tokens=6", "--model", str(demo_fp32_folder)]
    arguments.append("--temperature=0")  # the prompt samples otherwise
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=theirs, stdout=pipe, stderr=pipe, cwd=REPOSITORY) as process:
        os.close(theirs)
        os.write(ours, f"{PROMPT}\n{'z ' * 700}\nThe\n\x04".encode())
        out, err = (stream.decode().replace("\r\n", "\n") for stream in process.communicate(timeout=60))
    os.close(ours)
    texts = [runtime.generate(prompt, model=demo_fp32, max_new_tokens=6) for prompt in (PROMPT, "The")]
    assert process.returncode == 0
    assert out == f"> {texts[0]}\n> > {texts[1]}\n> "
    assert "Ctrl-D" in err
    assert err.count("gpt2-edge: error: ") == 1
    assert "512" in err


# complete ----------------------------------------------------------------------------------------------------------


def test_complete_names_every_continuation(command: Command, demo_fp32: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    arguments = ["--max-new-tokens=6", "--temperature=1", "--seed=3", "--n=2"]
    found = runtime.complete([PROMPT, "The"], model=demo_fp32, n=2, **options)
    status, out, err = command("complete", PROMPT, "The", *arguments)
    assert (status, err) == (0, "")
    for one in found:
        head = f"--- prompt {one.prompt_index}, sample {one.sample_index}: {one.finish_reason}, "
        assert f"{head}logprob {one.logprob:.2f}\n{one.text}\n" in out
    assert command("complete", *arguments, stdin=f"{PROMPT}\nThe\n")[1] == out
    assert command("complete", "-", *arguments, stdin=f"{PROMPT}\nThe\n")[1] == out


def test_complete_as_json(command: Command, demo_fp32: Model) -> None:
    status, out, err = command("complete", PROMPT, "--max-new-tokens=4", "--logprobs=2", "--json", "--verbose")
    [found], [expected] = (
        json.loads(out),
        runtime.complete(PROMPT, model=demo_fp32, max_new_tokens=4, logprobs=2),
    )
    assert (status, found["ids"], found["text"]) == (0, expected.ids, expected.text)
    assert set(found) >= {field.name for field in dataclasses.fields(expected)}
    assert found["top_logprobs"] == [{str(i): value for i, value in top.items()} for top in expected.top_logprobs]
    assert "4 new in" in err


@pytest.mark.parametrize(("typed", "means"), [("yes", True), ("no", False), ("never", "never")])
def test_complete_with_beams(command: Command, demo_fp32: Model, typed: str, means: bool | str) -> None:
    shape = ["--num-beams=3", "--n=2", "--length-penalty=0.5", f"--early-stopping={typed}"]
    found = json.loads(command("complete", PROMPT, *shape, "--max-new-tokens=6", "--json")[1])
    options: dict[str, Any] = {"num_beams": 3, "n": 2, "length_penalty": 0.5, "early_stopping": means}
    expected = runtime.complete(PROMPT, model=demo_fp32, max_new_tokens=6, **options)
    assert [(one["ids"], one["beam_score"]) for one in found] == [(one.ids, one.beam_score) for one in expected]


def test_complete_takes_a_batch_size(command: Command) -> None:
    typed = ["complete", PROMPT, "The king", "--max-new-tokens=4"]
    assert command(*typed, "--batch-size=1")[:2] == command(*typed)[:2]


# infill ------------------------------------------------------------------------------------------------------------

SUFFIX = ", and the cat was there, too."


def test_infill_prints_the_best_middle_or_all(command: Command, demo_fp32: Model) -> None:
    typed = ["infill", PROMPT, SUFFIX, "--max-new-tokens=4", "--seed=4", "--best-of=5"]
    found = runtime.infill(PROMPT, SUFFIX, model=demo_fp32, max_new_tokens=4, seed=4, best_of=5)
    assert command(*typed) == (0, f"{found[0].text}\n", "")
    status, out, err = command(*typed, "--json", "--verbose")
    told = json.loads(out)
    assert (status, [one["text"] for one in told]) == (0, [one.text for one in found])
    assert [one["suffix_logprob"] for one in told] == [one.suffix.logprob for one in found]
    assert "tokens/s" in err


def test_infill_explains_what_is_wrong(command: Command) -> None:
    status, out, err = command("infill", PROMPT, SUFFIX, "--temperature=0")
    assert (status, out) == (1, "")
    assert "at temperature 0 all middles are the same" in err
    status, out, err = command("infill", PROMPT, SUFFIX, "--best-of=1")
    assert (status, out) == (1, "")
    assert "best_of is 1; at least 2 middles are needed" in err


# score -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [None, "Once upon a time"])
def test_score(command: Command, demo_fp32: Model, context: str | None) -> None:
    text = " there was a little mouse"
    arguments = ["score", text] if context is None else ["score", text, "--context", context]
    if context is None:
        expected = runtime.score_text(text, model=demo_fp32)
    else:
        expected = runtime.score(text, context=context, model=demo_fp32)
    status, out, err = command(*arguments, "--verbose")
    n = len(expected.ids)
    assert (status, out) == (
        0,
        f"logprob {expected.logprob:.4f}, perplexity {expected.perplexity:.4f}, {n} tokens\n",
    )
    assert "tokens/s" in err
    found = json.loads(command(*arguments, "--json")[1])
    assert (found["ids"], found["perplexity"]) == (list(expected.ids), expected.perplexity)


def test_score_reads_standard_input_in_strides(command: Command, demo_fp32: Model) -> None:
    found = json.loads(command("score", "--stride=5", "--json", stdin=PROMPT)[1])
    assert found["logprob"] == runtime.score_text(PROMPT, model=demo_fp32, stride=5).logprob
    status, out, err = command("score", "a", "--context=b", "--stride=5")
    assert (status, out) == (1, "")
    assert "--stride" in err


def test_score_cuts_a_long_context_when_told_to(command: Command) -> None:
    typed = ["score", " cat", "--context", "word " * 700]
    status, out, err = command(*typed)
    assert (status, out) == (1, "")
    assert "truncate_left" in err
    status, out, _ = command(*typed, "--overflow=truncate_left", "--json")
    assert status == 0
    assert json.loads(out)["n_truncated"] > 0
    assert command("score", "a", "--overflow=truncate_left")[0] == 1


# perform -----------------------------------------------------------------------------------------------------------


def test_perform_takes_fields_as_text_and_as_json(command: Command, demo_fp32: Model) -> None:
    text, fields = "The little mouse was", ["--field=scoring=mean", '--field=options=["happy", "green"]']
    status, out, _ = command("perform", "choose", text, fields[1], "--json")
    expected = runtime.perform("choose", text, model=demo_fp32, options=["happy", "green"])
    assert (status, json.loads(out)["text"]) == (0, expected.text)
    assert json.loads(out)["confidence"] == expected.confidence
    status, out, err = command("perform", "translate", "Good day", "--field", "to=Spanish", "--max-new-tokens=5")
    expected = runtime.perform("translate", "Good day", model=demo_fp32, to="Spanish", max_new_tokens=5)
    assert (status, out, err) == (0, f"{expected.text}\n", "")


def test_perform_abstains(command: Command) -> None:
    arguments = ["perform", "last_word", "The little mouse went into the"]
    assert command(*arguments)[1].strip()
    status, out, err = command(*arguments, "--abstain-below=1", "--verbose")
    assert (status, out) == (0, "\n")
    assert "confidence 0." in err


def test_perform_shows_the_task(command: Command) -> None:
    from runtime.tasks.perform import TASKS

    assert command("perform", "summarize", "--show") == (0, f"{TASKS['summarize']}\n", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["dance", "a"], "dance"),
        (["sumarize", "a"], "(did you mean summarize?)"),
        (["translate", "a", "--field=too=French"], "(did you mean to?)"),
        (["translate", "a", "--field=to"], "NAME=VALUE"),
        (["translate", "a", "--field=colour=red"], "colour"),
        (["summarize", ""], "empty"),
    ],
)
def test_a_wrong_task_is_a_failure_that_names_it(command: Command, arguments: list[str], named: str) -> None:
    status, out, err = command("perform", *arguments)
    assert (status, out) == (1, "")
    assert named in err


# evaluate, check, info ---------------------------------------------------------------------------------------------


def test_evaluate(command: Command, demo_fp32: Model, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    lines = [{"text": "Once upon a time there was a little mouse"}, {"text": "He opened the old wooden door"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    status, out, err = command("evaluate", "lambada", str(file), "--json", "--verbose")
    assert (status, json.loads(out)) == (0, runtime.evaluate("lambada", file, model=demo_fp32))
    assert err.endswith(" s\n")
    table = command("evaluate", "lambada", str(file), "--limit=1")[1].splitlines()
    expected = runtime.evaluate("lambada", file, model=demo_fp32, limit=1)
    assert [line.split(maxsplit=1)[0] for line in table] == list(expected)


def test_check_is_0_or_1(command: Command, demo_fp32_folder: Path, tmp_path: Path) -> None:
    status, out, err = command("check")
    assert (status, out[:4], err) == (0, "ok: ", "")
    assert json.loads(command("check", str(demo_fp32_folder), "--json", "--threads=1")[1])["passed"] is True
    folder = Path(shutil.copytree(demo_fp32_folder, tmp_path / "model"))
    (folder / "config.json").write_bytes(b"{}")
    status, out, err = command("check", "--model", str(folder))
    assert (status, err) == (1, "")
    assert out.startswith("NOT OK: config.json")
    status, out, err = command("check", str(tmp_path))
    assert (status, out) == (1, "")
    assert "SHA256SUMS" in err


def test_info(command: Command, demo_fp32_folder: Path) -> None:
    status, out, _ = command("info", "--json")
    facts = json.loads(out)
    assert (status, facts["folder"], facts["precision"]) == (0, str(demo_fp32_folder), "fp32")
    lines = command("info", str(demo_fp32_folder))[1].splitlines()
    assert command("info", "--model", str(demo_fp32_folder))[1].splitlines() == lines
    assert [line.split(maxsplit=1)[0] for line in lines] == list(facts)
