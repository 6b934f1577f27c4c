"""The settings of the server, and the fields of requests that are options: kinds, limits and names."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from runtime.options import OPTIONS
from runtime.server.openai.fields import ChatRequest, CompletionRequest
from runtime.server_settings import SETTINGS, Settings, add_setting_arguments, read_settings


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        ({"port": 65536}, ValueError, "port is 65536; it must be at least 0 and at most 65535"),
        ({"port": -1}, ValueError, "port is -1; it must be at least 0"),
        ({"rows": 0}, ValueError, "rows is 0; it must be at least 1"),
        ({"rows": 2**31}, ValueError, "at most 2147483647"),
        ({"timeout": 0}, ValueError, "timeout is 0; it must be above 0"),
        ({"timeout": float("inf")}, ValueError, "timeout is inf; it must be finite"),
        ({"grace": -0.5}, ValueError, "grace is -0.5; it must be at least 0"),
        ({"queue": 1.5}, TypeError, "queue is 1.5; a whole number is expected"),
        ({"host": None}, TypeError, "host is None; a text (str) is expected"),
        ({"allow_no_key": 1}, TypeError, "allow_no_key is 1; True or False is expected"),
        ({"api_key": ""}, ValueError, "the API key must be printable ASCII"),
        ({"alias": ""}, ValueError, "alias is ''; 1 to 256 printable characters"),
        ({"alias": "a\nb"}, ValueError, "alias is 'a\\nb'"),
        ({"alias": ["a", " b"]}, ValueError, "alias is ' b'"),
        ({"alias": ()}, ValueError, "alias"),
        ({"tls_cert": "a.pem"}, ValueError, "tls_key is not given"),
        ({"tls_key": "a.pem"}, ValueError, "tls_cert is not given"),
        ({"cors_origin": ["*"]}, ValueError, "without a key"),
        ({"cors_origin": ["null"]}, ValueError, "an origin is SCHEME://HOST"),
        ({"cors_origin": ["http://a.example/"]}, ValueError, "with nothing after it"),
        ({"cors_origin": ["a.example"]}, ValueError, "an origin is SCHEME://HOST"),
        ({"cors_origin": ["http://*.example"]}, ValueError, "an origin is SCHEME://HOST"),
        ({"cors_origin": "http://a.example"}, TypeError, "cors_origin"),
        ({"api_key": " a"}, ValueError, "must not begin or end with a space"),
    ],
    ids=repr,
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind) as raised:
        Settings(**wrong)
    assert told in str(raised.value)


def test_settings_on_the_command_line_are_those_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2_EDGE_API_KEY", raising=False)
    parser = argparse.ArgumentParser()
    add_setting_arguments(parser)
    assert read_settings(parser.parse_args([])) == Settings()
    given = {name: setting.default for name, setting in SETTINGS.items() if name not in ("allow_no_key", "api_key")}
    given |= {"rows": 3, "queue": 0, "grace": 0.0, "host": "localhost"}
    given |= {"alias": ("tiny",), "tls_cert": "cert.pem", "tls_key": "key.pem", "cors_origin": ("http://a.example",)}
    arguments = [
        f"--{name.replace('_', '-')}={value[0] if name in ('alias', 'cors_origin') else value}"
        for name, value in given.items()
    ]
    settings = read_settings(parser.parse_args([*arguments, "--allow-no-key", "--api-key", "swordfish"]))
    assert settings == Settings(**given, allow_no_key=True, api_key="swordfish")
    assert dataclasses.asdict(settings) == given | {"allow_no_key": True, "api_key": "swordfish"}


@pytest.mark.parametrize("request_type", [CompletionRequest, ChatRequest])
def test_every_option_is_a_field(request_type: Any) -> None:
    assert OPTIONS.keys() - request_type.model_fields.keys() == {"max_new_tokens", "cancel", "logits_processor"}


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("top_k", 0, -1),
        ("top_p", 1e-9, 0),
        ("min_p", 1, 1.1),
        ("repetition_penalty", 0.1, 0),
        ("presence_penalty", -2.0, "1"),
        ("overflow", "slide", "wrap"),
        ("stop_ids", [1, 2], ["1"]),
        ("choices", ["a"], [1]),
        ("json_schema", {"type": "object"}, 3),
        ("token_healing", True, 1),
        ("seed", 2**64 - 1, 2**64),
        ("lookup", 2**31 - 1, 2**31),
        ("deadline", 0.5, 0),
    ],
)
def test_a_field_has_the_limits_of_its_option(name: str, right: object, wrong: object) -> None:
    body = CompletionRequest(prompt="Once", **{name: right})
    assert body.generation_options() == {name: right}
    with pytest.raises(ValidationError, match=name):
        CompletionRequest(prompt="Once", **{name: wrong})
