"""What a server may be told: names, defaults and meanings, each said once."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
from typing import Any

KEY_VARIABLE = "GPT2_EDGE_API_KEY"


def _setting(default: Any, about: str) -> Any:
    return dataclasses.field(default=default, metadata={"about": about})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Where to listen, to whom, and how much of everything. Raises ValueError for what cannot be."""

    host: str = _setting("127.0.0.1", "address to listen on; any but this machine's own needs a key")
    port: int = _setting(8000, "port to listen on; 0 takes a free one")
    api_key: str | None = _setting(None, f"clients must send this key; better put in ${KEY_VARIABLE}")
    allow_no_key: bool = _setting(False, "listen on an address that others reach, without a key")
    rows: int | None = _setting(None, "continuations that decode together; 8, or 1 for a plain ONNX export")
    queue: int = _setting(64, "continuations that may wait for a row; beyond it clients are told to come back")
    connections: int = _setting(128, "clients connected at a time")
    max_body_bytes: int = _setting(2**20, "size of a request")
    max_reply_bytes: int = _setting(2**25, "size that a reply may have, by its tokens, logprobs and echo")
    max_tokens: int = _setting(4096, "new tokens of one continuation")
    timeout: float = _setting(300.0, "seconds of one request, waiting included; what is written by then is sent")
    client_timeout: float = _setting(20.0, "seconds a client may take to send its request, or not to read the reply")
    grace: float = _setting(10.0, "seconds that requests under way have to finish when the server is stopped")

    def __post_init__(self) -> None:
        low = {"port": 0, "queue": 0, "grace": 0}
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), low.get(field.name, 1e-3)
            if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value < 2**31:
                raise ValueError(f"{field.name} is {value}; it must be {'at least 0' if least == 0 else 'above 0'}")
        if self.port > 65535:
            raise ValueError(f"port is {self.port}; it must be at most 65535")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("the API key must be printable ASCII, and not empty")
        if self.api_key is not None and self.api_key != self.api_key.strip():
            raise ValueError("the API key must not begin or end with a space: no header can carry it so")
        if not (self.is_local or self.api_key or self.allow_no_key):
            raise ValueError(
                f"host {self.host} may be reached by others: set ${KEY_VARIABLE} to a key that clients must send, "
                "or say --allow-no-key"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting as an argument: `max_tokens` is --max-tokens."""
    group = parser.add_argument_group("settings of the server")
    for field in dataclasses.fields(Settings):
        about, kind = field.metadata["about"], str(field.type).split(" ")[0]
        how: dict[str, Any] = {"help": about, "action": "store_true"}
        if kind != "bool":
            default = "" if field.default is None else f" (default: {field.default})"
            of = {"int": int, "float": float, "str": str}[kind]
            how = {"help": f"{about}{default}", "type": of, "metavar": "TEXT" if of is str else "N"}
        group.add_argument(
            f"--{field.name.replace('_', '-')}", dest=f"setting_{field.name}", default=argparse.SUPPRESS, **how
        )


def read_settings(given: argparse.Namespace) -> Settings:
    """The settings given on the command line, and the key of the environment. Raises ValueError."""
    named = {name.removeprefix("setting_"): v for name, v in vars(given).items() if name.startswith("setting_")}
    key = os.environ.get(KEY_VARIABLE)
    if key == "" and "api_key" not in named:
        raise ValueError(f"${KEY_VARIABLE} is empty: set it to a key, or unset it to serve without one")
    return Settings(**{"api_key": key, **named})
