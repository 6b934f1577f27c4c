"""TLS: the files of `--tls-cert` and `--tls-key`, checked before the server starts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from runtime.server_settings import Settings


def tls_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of uvicorn.Config; none without TLS.

    Raises OSError for a file that cannot be read, ValueError for files that are not a certificate and its key.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return {}
    for path in (settings.tls_cert, settings.tls_key):
        # ssl's own error does not say which of the files is missing.
        with Path(path).open("rb"):
            pass
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, _refuse_password)
    except ssl.SSLError as error:
        told = f"--tls-cert {settings.tls_cert} and --tls-key {settings.tls_key} are not a certificate and its key"
        raise ValueError(f"{told}, both in PEM: {error}") from None
    return {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}


def _refuse_password() -> str:
    """Without this, OpenSSL would ask for a password on the terminal, and wait."""
    raise ValueError("--tls-key has a password; give a key without one, in a file that only this server can read")
