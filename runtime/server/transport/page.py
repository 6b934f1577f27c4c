"""The page at / and its files; it loads nothing from other servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Response

SCRIPTS = ("client.js", "sheet.js", "tabs.js", "models.js", "page.js", "surprisal.js", "classify.js")
router = APIRouter(include_in_schema=False)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


# each address, its file and its kind
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in SCRIPTS},
}


def _file(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    path = Path(__file__).with_name("static") / name

    async def respond() -> Response:
        return Response(path.read_bytes(), headers=_HEADERS, media_type=media_type)

    return respond


for _path, _given in FILES.items():
    router.add_api_route(_path, _file(*_given))
