"""Who may ask the server: names that point at it, keys, and the page, which may load nothing from elsewhere."""

from __future__ import annotations

import pytest

from runtime.model.model import Model
from runtime.server.transport.page import FILES
from tests.support.connecting import nothing_is_left as nothing_is_left
from tests.support.connecting import server as server
from tests.support.serving import Running, running


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "testserver"]
)
def test_a_name_that_points_here_is_not_enough(server: Running, host: str) -> None:
    """A web page can have its own name resolve to 127.0.0.1, and would then read what it asked."""
    reply = server.request("GET", "/v1/models", Host=host)
    assert (reply.status, reply.error["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:80", "192.168.0.7"])
def test_an_address_is(server: Running, host: str) -> None:
    assert server.request("GET", "/v1/models", Host=host).status == 200


PAGE_ELSEWHERE = [
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://localhost:5173", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
]


@pytest.mark.parametrize("headers", PAGE_ELSEWHERE, ids=str)
@pytest.mark.parametrize("kind", [None, "text/plain", "application/json"])
def test_a_page_elsewhere_may_not_ask(server: Running, headers: dict[str, str], kind: str | None) -> None:
    """A browser sends such requests without asking first, whatever the reply to them would allow."""
    body, given = b'{"prompt": "a", "max_tokens": 2}', headers | ({"Content-Type": kind} if kind else {})
    for path, method in (("/v1/completions", "POST"), ("/v1/models", "GET"), ("/metrics", "GET")):
        reply = server.request(method, path, body if method == "POST" else None, **given)
        assert (reply.status, reply.error["code"]) == (403, "cross_site")


def test_the_page_may_ask_and_be_linked_to(server: Running) -> None:
    own = {"Origin": f"http://127.0.0.1:{server.port}", "Content_Type": "application/json"}
    body = b'{"prompt": "a", "max_tokens": 2}'
    for headers in (own, {**own, "Sec_Fetch_Site": "same-origin"}, {"Content_Type": own["Content_Type"]}):
        assert server.request("POST", "/v1/completions", body, **headers).status == 200
    assert server.request("GET", "/", Sec_Fetch_Site="cross-site").status == 200
    assert server.request("GET", "/v1/models", Sec_Fetch_Site="none").status == 200


def test_with_a_key_only_those_who_have_it(demo_int8: Model) -> None:
    with running(demo_int8, api_key="swordfish") as server:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
            for given in (
                {},
                {"Authorization": "Bearer sword"},
                {"Authorization": "swordfish"},
                {"Authorization": "é"},
            ):
                reply = server.request("GET", path, **given)
                assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
                assert reply.headers["www-authenticate"] == "Bearer"
        key = {"Authorization": "Bearer swordfish"}
        assert server.request("GET", "/v1/models", **key).status == 200
        assert server.request("GET", "/v1/models", Host="my.example", **key).status == 200
        assert server.request("GET", "/health").status == 200
        assert server.request("GET", "/").status == 200


def test_the_page_may_load_nothing_from_elsewhere(server: Running) -> None:
    for path, (_, kind) in FILES.items():
        reply = server.request("GET", path)
        assert reply.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert b"http" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert "access-control-allow-origin" not in server.request("GET", "/v1/models", Origin="http://a.example").headers
