"""Pages of other origins: off by default; on for the origins in the settings, and for no others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.model.model import Model
from tests.support.serving import Reply, Running, running

APP = "http://localhost:5173"
BODY = b'{"prompt": "a", "max_tokens": 2}'
ASKED = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization, x-stainless-lang"}


@pytest.fixture(scope="module")
def server(demo_int8: Model) -> Iterator[Running]:
    with running(demo_int8, cors_origin=[APP, "https://app.example"]) as one:
        yield one


def allowed(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control")}


def ask(server: Running, origin: str, **headers: str) -> Reply:
    return server.request("POST", "/v1/completions", BODY, Content_Type="application/json", Origin=origin, **headers)


@pytest.mark.parametrize("site", [{}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}])
@pytest.mark.parametrize("origin", [APP, "https://app.example"])
def test_a_page_of_an_origin_may_ask(server: Running, origin: str, site: dict[str, str]) -> None:
    reply = ask(server, origin, **site)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == origin
    assert reply.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in reply.headers


def test_its_page_reads_errors_too(server: Running) -> None:
    reply = server.request("POST", "/v1/completions", b"{}", Content_Type="application/json", Origin=APP)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (400, APP)


def test_a_preflight_is_answered(server: Running) -> None:
    reply = server.request("OPTIONS", "/v1/completions", Origin=APP, **ASKED)
    assert (reply.status, reply.body) == (204, b"")
    assert allowed(reply) == {
        "access-control-allow-origin": APP,
        "access-control-expose-headers": "Retry-After",
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization, x-stainless-lang",
        "access-control-max-age": "600",
    }
    private = server.request("OPTIONS", "/", Origin=APP, Access_Control_Request_Private_Network="true", **ASKED)
    assert private.headers["access-control-allow-private-network"] == "true"


OTHERS = ["http://localhost:5174", "https://localhost:5173", "null", "https://app.example.evil.example", f"{APP}.evil"]


@pytest.mark.parametrize("origin", OTHERS)
def test_other_pages_may_not_ask(server: Running, origin: str) -> None:
    for reply in (ask(server, origin), server.request("OPTIONS", "/v1/completions", Origin=origin, **ASKED)):
        assert (reply.status, reply.error["code"]) == (403, "cross_site")
        assert allowed(reply) == {}
        assert reply.headers["vary"] == "Origin"


def test_the_name_of_the_server_is_checked_still(server: Running) -> None:
    """A name that points here is refused, whatever origin the request has."""
    for reply in (ask(server, APP, Host="evil.example"), ask(server, APP, Host=f"evil.example:{server.port}")):
        assert (reply.status, reply.error["code"]) == (403, "unknown_host")
    asked = server.request("OPTIONS", "/v1/completions", Origin=APP, Host="evil.example", **ASKED)
    assert asked.error["code"] == "unknown_host"


def test_requests_without_an_origin_are_as_before(server: Running) -> None:
    assert server.request("GET", "/v1/models").status == 200
    hidden = server.request("GET", "/v1/models", Sec_Fetch_Site="cross-site")
    assert (hidden.status, hidden.error["code"]) == (403, "cross_site")
    assert server.request("OPTIONS", "/v1/completions").status == 405


def test_by_default_no_page_may(demo_int8: Model) -> None:
    with running(demo_int8) as server:
        for reply in (ask(server, APP), server.request("OPTIONS", "/v1/completions", Origin=APP, **ASKED)):
            assert (reply.status, reply.error["code"]) == (403, "cross_site")
            assert allowed(reply) == {}
            assert "vary" not in reply.headers


def test_with_a_key_a_preflight_needs_none_and_the_request_does(demo_int8: Model) -> None:
    with running(demo_int8, api_key="swordfish", cors_origin=["*"]) as server:
        assert server.request("OPTIONS", "/v1/completions", Origin="http://any.example", **ASKED).status == 204
        refused = ask(server, "http://any.example")
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "http://any.example")
        assert ask(server, "http://any.example", Authorization="Bearer swordfish").status == 200
