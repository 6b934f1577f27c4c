"""The options of generation on the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import parser as cli
from runtime.cli.arguments import NOT_ON_THE_COMMAND_LINE
from runtime.options import Options, make_options


@pytest.mark.parametrize("name", ["generate", "complete", "perform"])
def test_every_option_is_on_the_command_line_under_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for field in dataclasses.fields(Options):
        flag = f"--{field.name.replace('_', '-')}"
        assert (f"{flag} " in text or f"{flag}\n" in text) == (field.name not in NOT_ON_THE_COMMAND_LINE)


def test_every_option_reaches_the_generation(demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(Options)
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }
    given |= {"temperature": 0.5, "top_k": 7, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5, "max_new_tokens": 3}
    given |= {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "pinned_tokens": 2, "overflow": "slide"}
    given |= {"presence_penalty": 0.1, "frequency_penalty": 0.2, "min_new_tokens": 1, "seed": 5, "deadline": 99.5}
    given |= {"dry_multiplier": 0.8, "dry_base": 1.5, "dry_allowed_length": 3}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    arguments += ["--special-tokens", "--token-healing", "--logit-bias=5=1.5", "--logit-bias=6=-2", "--stop=zz"]
    arguments += [r"--banned=a\tb", r"--dry-sequence-breakers=\n", "--dry-sequence-breakers=x"]
    arguments += ["--stop-ids=7", "--suppress-ids=8", "--suppress-ids=9"]
    seen: list[Options] = []

    def keep(options: dict[str, Any]) -> Options:
        seen.append(make_options(options))
        return seen[-1]

    monkeypatch.setattr("runtime.cli.commands.make_options", keep)
    assert cli.main(["generate", "Once", *arguments, "--model", str(demo_fp32_folder)]) == 0
    expected = given | {"special_tokens": True, "token_healing": True, "logit_bias": {5: 1.5, 6: -2.0}}
    expected |= {"stop": ("zz",), "stop_ids": (7,), "suppress_ids": (8, 9), "cancel": None}
    expected |= {"banned": ("a\tb",), "dry_sequence_breakers": ("\n", "x"), "logits_processor": None}
    expected |= {"choices": None, "regex": None, "json_schema": None}
    assert dataclasses.asdict(seen[0]) == expected
