"""Check a request before it is processed: its host, origin, key, size, and the time it takes to arrive."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.engine.engines import Engines
from runtime.server.errors import CLOSED_REQUEST, ApiError, short
from runtime.server.transport import page
from runtime.server.transport.cors import Cors
from runtime.server_settings import Settings

# These paths need no key, since they reveal nothing about the model.
OPEN_PATHS = frozenset({*page.FILES, "/health"})
# How many bytes beyond the limit are read and discarded.
_DISCARDED_BYTES = 2**24
# Closes the connection, so that the server need not read the rest of the body.
_LAST = {"Connection": "close"}


class Guard:
    """ASGI middleware that reads the whole body of a request, within the limits, and counts the replies."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._cors = Cors(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        status = [CLOSED_REQUEST]

        async def send_counted(message: Message) -> None:
            status[0] = message.get("status", status[0])
            if message["type"] == "http.response.start":
                self._cors.mark(Headers(scope=scope), MutableHeaders(scope=message))
            await send(message)

        try:
            await self._pass_on(scope, receive, send_counted)
        except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        # A panic of Rust code, for which the framework would not send our error message.
        except BaseException as error:
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
        """Without a key, accept only an address, localhost or the configured name as Host.

        Otherwise a web page could reach the server through a name of its own that points to it (DNS rebinding).
        """
        name = headers.get("host", "").strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if self._settings.api_key or name in ("localhost", self._settings.host.lower()):
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            message = f"the host {name!r} is not one of this server's; use its address, or a key"
            raise ApiError(message, status=403, code="unknown_host", headers=_LAST) from None

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Without a key, accept requests of browsers only from this server's page and from the allowed origins.

        Any web page could send some. Links from other pages to this page are allowed. A browser states the origin of a
        request in Sec-Fetch-Site, which pages cannot change, and older browsers in Origin; other clients send neither.
        """
        if (
            self._settings.api_key
            or self._cors.allows(headers)
            or (scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_PATHS)
        ):
            return
        site = headers.get("sec-fetch-site")
        origin = headers.get("origin")
        is_own = origin is None or origin.lower().partition("://")[2] == headers.get("host", "").strip().lower()
        if site is not None:
            is_own = site in ("same-origin", "none")
        if not is_own:
            message = f"the request comes from a page elsewhere ({short(origin)}); only this server's own page may ask"
            raise ApiError(message, status=403, code="cross_site", headers=_LAST)

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
        """The body; None if the client left before its end. Raises ApiError if it is too large or too slow.

        Most clients read a reply only after they have sent everything, so some bytes beyond the limit are read and
        discarded.
        """
        limit = self._settings.max_body_bytes
        body = bytearray()
        n_bytes = 0
        is_last = False
        try:
            async with asyncio.timeout(self._settings.client_timeout):
                while not is_last and n_bytes <= limit + _DISCARDED_BYTES:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    n_bytes += len(message["body"])
                    is_last = not message["more_body"]
                    if n_bytes <= limit:
                        body += message["body"]
        except TimeoutError:
            if n_bytes <= limit:
                message_text = f"the request did not come within {self._settings.client_timeout} s"
                raise ApiError(message_text, status=408, code="request_timeout", headers=_LAST) from None
        if n_bytes > limit:
            message_text = f"the request is larger than {limit} bytes"
            raise ApiError(message_text, status=413, code="request_too_large", headers=_LAST)
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body first."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _count(scope: Scope, status: int, seconds: float) -> None:
    engines: Engines = scope["app"].state.engines
    # The route, not the path of the request: clients could invent any number of paths.
    path = getattr(scope.get("route"), "path", "other")
    engines.metrics.count_request(path, status, scope.get("state", {}).get("model", ""), seconds)
