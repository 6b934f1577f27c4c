"""The page at / and its files; it loads nothing from other servers."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _response(name: str, media_type: str) -> Response:
    return Response(
        Path(__file__).with_name("static").joinpath(name).read_bytes(), headers=_HEADERS, media_type=media_type
    )


@router.get("/")
async def page() -> Response:
    """The page."""
    return _response("page.html", "text/html")


@router.get("/page.css")
async def style() -> Response:
    """The style sheet of the page."""
    return _response("page.css", "text/css")


@router.get("/page.js")
async def script() -> Response:
    """The script of the page."""
    return _response("page.js", "text/javascript")


@router.get("/sheet.js")
async def sheet() -> Response:
    """The script that renders results on the page."""
    return _response("sheet.js", "text/javascript")
