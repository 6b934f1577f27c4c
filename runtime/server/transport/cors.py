"""Cross-origin requests: pages of other origins that may ask, by `--cors-origin`."""

from __future__ import annotations

import re

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders

from runtime.server_settings import ANY_ORIGIN, Settings

_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")
_PREFLIGHT_SECONDS = 600  # that a browser keeps the answer to a preflight


class Cors:
    """Tells the browser that pages of the origins in the settings may ask, and read the reply. Off without any."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(settings.cors_origin or ())

    def allows(self, headers: Headers) -> bool:
        """Whether the request comes from a page of such an origin. A browser writes the header, no page can."""
        origin = headers.get("origin")
        return origin is not None and (ANY_ORIGIN in self._origins or origin.lower() in self._origins)

    def mark(self, request: Headers, reply: MutableHeaders) -> None:
        """Let the page read the reply. Cookies are not allowed: this server has none."""
        if not self._origins:
            return
        # A cache must not give the reply to one origin to another.
        reply.add_vary_header("Origin")
        if self.allows(request):
            reply["Access-Control-Allow-Origin"] = request["origin"]
            reply["Access-Control-Expose-Headers"] = "Retry-After"

    def preflight(self, method: str, headers: Headers) -> Response | None:
        """The answer to a browser that asks whether it may send a request; None for every other request.

        It says nothing of the model, and comes before the key: a browser sends no key with it.
        """
        if method != "OPTIONS" or "access-control-request-method" not in headers or not self.allows(headers):
            return None
        found = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS)}
        # Clients send headers of their own, such as X-Stainless-Lang. None of them gives a page any right.
        asked = headers.get("access-control-request-headers", "")
        if _HEADER_NAMES.fullmatch(asked):
            found["Access-Control-Allow-Headers"] = asked
        if headers.get("access-control-request-private-network") == "true":
            found["Access-Control-Allow-Private-Network"] = "true"
        return Response(status_code=204, headers=found)
