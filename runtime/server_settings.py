"""The settings of the server: kind, default and meaning, each said once."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from runtime._kinds import Flag, Integer, Kind, Number, Text, Texts, add_argument

KEY_VARIABLE = "GPT2_EDGE_API_KEY"
MOST = 2**31 - 1
MOST_BYTES = 2**40
ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@*,]+")
_MAX_ALIAS = 256  # characters
T = TypeVar("T")
D = TypeVar("D")


class Setting(NamedTuple):
    """All there is to know of one setting."""

    kind: Kind[Any]
    default: Any
    about: str


class _Names(Texts):
    """One name or several."""

    def read(self, name: str, value: Any) -> Sequence[str]:
        """See `Kind.read`."""
        return super().read(name, (value,) if isinstance(value, str) else value)


def _setting(kind: Kind[T], default: D, about: str) -> T | D:
    """A field of `Settings`. A type checker compares its annotation with the kind and the default."""
    field: Any = dataclasses.field(default=default, metadata={"setting": Setting(kind, default, about)})
    return field  # type: ignore[no-any-return]  # dataclasses.field pretends to be the value, too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Where to listen, to whom, and how much of everything. Raises TypeError or ValueError for a wrong value."""

    host: str = _setting(Text(), "127.0.0.1", "address to listen on; any but this machine's own needs a key")
    port: int = _setting(Integer(0, 65535), 8000, "port to listen on; 0 takes a free one")
    api_key: str | None = _setting(Text(), None, f"clients must send this key; better put in ${KEY_VARIABLE}")
    allow_no_key: bool = _setting(Flag(), False, "listen on an address that others reach, without a key")
    alias: str | Sequence[str] | None = _setting(
        _Names(), None, "name of the model for clients (default: that of its folder); of several models one for each"
    )
    cors_origin: Sequence[str] | None = _setting(
        Texts(), None, "pages of this origin may ask, such as http://localhost:5173; * is any, and needs a key"
    )
    tls_cert: str | None = _setting(Text(), None, "file of the certificate chain (PEM), to serve HTTPS")
    tls_key: str | None = _setting(Text(), None, "file of its private key (PEM, without a password)")
    rows: int | None = _setting(
        Integer(1, MOST),
        None,
        "continuations of a model that decode together (default: 8, or 1 for a plain ONNX export)",
    )
    queue: int = _setting(
        Integer(0, MOST),
        64,
        "continuations that may wait for a row of their model; beyond it clients are told to come back",
    )
    prompt_cache_bytes: int = _setting(
        Integer(0, MOST_BYTES),
        2**28,
        "memory of all models for what prompts have in common at their beginning; 0 shares nothing",
    )
    connections: int = _setting(Integer(1, MOST), 128, "clients connected at a time")
    max_body_bytes: int = _setting(Integer(1, MOST), 2**20, "size of a request")
    max_reply_bytes: int = _setting(
        Integer(1, MOST), 2**25, "size that a reply may have, by its tokens, logprobs and echo"
    )
    max_tokens: int = _setting(Integer(1, MOST), 4096, "new tokens of one continuation")
    timeout: float = _setting(
        Number(above=0, most=MOST), 300.0, "seconds of one request, waiting included; what is written by then is sent"
    )
    client_timeout: float = _setting(
        Number(above=0, most=MOST), 20.0, "seconds a client may take to send its request, or not to read the reply"
    )
    grace: float = _setting(
        Number(least=0, most=MOST), 10.0, "seconds that running requests have to finish when the server is stopped"
    )

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            if value is not None or setting.default is not None:
                object.__setattr__(self, name, setting.kind.read(name, value))
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("the API key must be printable ASCII, and not empty")
        if self.api_key is not None and self.api_key != self.api_key.strip():
            raise ValueError("the API key must not begin or end with a space: an HTTP header cannot hold it")
        self._check_aliases()
        self._check_origins()
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            raise ValueError(f"{missing} is not given: HTTPS needs a certificate and its key; give both or neither")
        if not (self.is_local or self.api_key or self.allow_no_key):
            raise ValueError(
                f"host {self.host} may be reached by others: set ${KEY_VARIABLE} to a key that clients must send, "
                "or say --allow-no-key"
            )

    def _check_aliases(self) -> None:
        """A name stands in addresses: /v1/models/NAME."""
        for alias in self.aliases:
            if not alias or len(alias) > _MAX_ALIAS or not alias.isprintable() or alias != alias.strip():
                told = f"1 to {_MAX_ALIAS} printable characters are expected, without spaces at the ends"
                raise ValueError(f"alias is {alias[:_MAX_ALIAS]!r}; {told}")

    @property
    def aliases(self) -> Sequence[str]:
        """The names that were given, in the order of the models; none where the folders' names are taken."""
        return (self.alias,) if isinstance(self.alias, str) else self.alias or ()

    def _check_origins(self) -> None:
        """Raise ValueError for what no browser sends as an origin, and for any origin without a key."""
        if self.cors_origin is None:
            return
        origins = tuple(origin.lower() for origin in self.cors_origin)
        for origin in origins:
            if origin == ANY_ORIGIN:
                if not self.api_key:
                    told = f"set ${KEY_VARIABLE}, or name the origins; otherwise every page that is visited may ask"
                    raise ValueError(f"cors_origin is {ANY_ORIGIN!r} without a key: {told}")
            elif not _ORIGIN.fullmatch(origin):
                told = "an origin is SCHEME://HOST or SCHEME://HOST:PORT, with nothing after it"
                raise ValueError(f"cors_origin is {origin!r}; {told}")
        object.__setattr__(self, "cors_origin", origins)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"


SETTINGS = {field.name: field.metadata["setting"] for field in dataclasses.fields(Settings)}


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting as an argument: `max_tokens` is --max-tokens."""
    group = parser.add_argument_group("settings of the server")
    for name, setting in SETTINGS.items():
        add_argument(group, name, setting.kind, setting.default, setting.about, destination=f"setting_{name}")


def read_settings(given: argparse.Namespace) -> Settings:
    """The settings given on the command line, and the key of the environment. Raises ValueError."""
    named = {name.removeprefix("setting_"): v for name, v in vars(given).items() if name.startswith("setting_")}
    key = os.environ.get(KEY_VARIABLE)
    if key == "" and "api_key" not in named:
        raise ValueError(f"${KEY_VARIABLE} is empty: set it to a key, or unset it to serve without one")
    return Settings(**{"api_key": key, **named})
