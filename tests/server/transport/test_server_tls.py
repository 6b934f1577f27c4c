"""HTTPS from two files, and files that cannot be used."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from runtime.model.model import Model
from runtime.server_settings import Settings
from tests.support.serving import running

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate, its key, another key, and a key with a password."""
    folder = tmp_path_factory.mktemp("tls")
    found = {name: str(folder / f"{name}.pem") for name in ("cert", "key", "other", "locked")}
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", found["key"], "-out", found["cert"], *subject)
    openssl("genrsa", "-out", found["other"], "2048")
    openssl("rsa", "-in", found["key"], "-aes128", "-passout", "pass:secret", "-out", found["locked"])
    return found


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def test_the_server_speaks_https(demo_int8: Model, files: dict[str, str]) -> None:
    context = ssl.create_default_context(cafile=files["cert"])
    with running(demo_int8, tls_cert=files["cert"], tls_key=files["key"]) as server:
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=context)
        body = '{"prompt": "a", "max_tokens": 3, "stream": true}'
        own = {"Content-Type": "application/json", "Origin": f"https://127.0.0.1:{server.port}"}
        connection.request("POST", "/v1/completions", body, own)
        reply = connection.getresponse()
        assert reply.status == 200
        assert reply.read().endswith(b"data: [DONE]\n\n")
        connection.close()
        plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        plain.request("GET", "/health")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
        plain.close()


@pytest.mark.parametrize(
    ("cert", "key", "kind", "told"),
    [
        ("cert", "other", ValueError, "are not a certificate and its key"),
        ("key", "key", ValueError, "are not a certificate and its key"),
        ("cert", "cert", ValueError, "are not a certificate and its key"),
        ("cert", "locked", ValueError, "has a password"),
        ("none", "key", OSError, "none.pem"),
        ("cert", "none", OSError, "none.pem"),
    ],
)
def test_files_that_cannot_be_used_are_told(
    files: dict[str, str], cert: str, key: str, kind: type[Exception], told: str
) -> None:
    missing = str(Path(files["cert"]).with_name("none.pem"))
    settings = Settings(tls_cert=files.get(cert, missing), tls_key=files.get(key, missing))
    # Imported here, since the server is an extra.
    from runtime.server.transport.tls import tls_options

    with pytest.raises(kind, match=told):
        tls_options(settings)


def test_without_files_there_is_no_tls() -> None:
    from runtime.server.transport.tls import tls_options

    assert tls_options(Settings()) == {}
