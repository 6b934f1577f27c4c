"""What a request must pass before it is read: its host, its key, its size, and the time it takes to send."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.engine.metrics import Metrics
from runtime.server.errors import CLOSED_REQUEST, ApiError, short
from runtime.server.transport.cors import Cors
from runtime.server_settings import Settings

OPEN_PATHS = frozenset(
    {"/", "/page.css", "/page.js", "/sheet.js", "/health"}
)  # without a key: they tell nothing of the model
_FORGOTTEN_BYTES = 2**24
_LAST = {"Connection": "close"}  # what is left of the body is not waited for


class Guard:
    """An ASGI application around another: reads the body whole, within the limits, and counts the replies."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._cors = Cors(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), [CLOSED_REQUEST]

        async def send_counted(message: Message) -> None:
            status[0] = message.get("status", status[0])
            if message["type"] == "http.response.start":
                self._cors.mark(Headers(scope=scope), MutableHeaders(scope=message))
            await send(message)

        try:
            await self._pass_on(scope, receive, send_counted)
        except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic, which the framework would not answer in our words
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        finally:
            _count(scope, status[0], time.monotonic() - start)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            if (answer := self._cors.preflight(scope["method"], headers)) is not None:
                await answer(scope, receive, send)
                return
            self._check_origin(scope, headers)
            self._check_key(scope["path"], headers)
            body = await self._read(receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        """Without a key, only by address: a web page elsewhere could have its own name point here."""
        name = headers.get("host", "").strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if self._settings.api_key or name in ("localhost", self._settings.host.lower()):
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            told = f"the host {name!r} is not one of this server's; use its address, or a key"
            raise ApiError(told, status=403, code="unknown_host", headers=_LAST) from None

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Without a key, only pages of this server, and of the origins in the settings, may ask.

        Any page that is visited can send requests here. The page of this server may be linked to from anywhere. A
        browser says where a request comes from by Sec-Fetch-Site, which no page can change, or, where it is older, by
        Origin; other clients send neither.
        """
        if (
            self._settings.api_key
            or self._cors.allows(headers)
            or (scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_PATHS)
        ):
            return
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        is_own = origin is None or origin.lower().partition("://")[2] == headers.get("host", "").strip().lower()
        if site is not None:
            is_own = site in ("same-origin", "none")
        if not is_own:
            told = f"the request comes from a page elsewhere ({short(origin)}); only this server's own page may ask"
            raise ApiError(told, status=403, code="cross_site", headers=_LAST)

    def _check_key(self, path: str, headers: Headers) -> None:
        key = self._settings.api_key
        if key is None or path in OPEN_PATHS:
            return
        given = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + key.encode("ascii")):
            raise ApiError(
                "a key is needed: the header Authorization: Bearer KEY",
                status=401,
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", **_LAST},
            )

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where the client left before its end. Raises ApiError for one too large or too slow.

        Most clients read a reply only after they have sent all: of what is too large, some is read and forgotten.
        """
        limit, body, n_bytes, is_last = self._settings.max_body_bytes, bytearray(), 0, False
        try:
            async with asyncio.timeout(self._settings.client_timeout):
                while not is_last and n_bytes <= limit + _FORGOTTEN_BYTES:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    n_bytes += len(message["body"])
                    is_last = not message["more_body"]
                    if n_bytes <= limit:
                        body += message["body"]
        except TimeoutError:
            if n_bytes <= limit:
                told = f"the request did not come within {self._settings.client_timeout} s"
                raise ApiError(told, status=408, code="request_timeout", headers=_LAST) from None
        if n_bytes > limit:
            told = f"the request is larger than {limit} bytes"
            raise ApiError(told, status=413, code="request_too_large", headers=_LAST)
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _count(scope: Scope, status: int, seconds: float) -> None:
    metrics: Metrics = scope["app"].state.engine.metrics
    route = scope.get("route")
    metrics.requests.labels(getattr(route, "path", "other"), str(status)).inc()  # not the path: anyone can make one up
    metrics.seconds.observe(seconds)
