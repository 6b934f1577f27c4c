"""The page in a real browser, as fixtures, and hands and eyes for it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.serving import Running
from tests.support.serving import server as server

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
browser_only = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found and not os.environ.get("CI"):
        pytest.skip("no chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


def open_page(browser: Any, server: Running, **options: Any) -> Iterator[Any]:
    """A fresh page. Afterwards: no complaint on its console, and nothing was asked of anyone else."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
    page, complaints, asked = context.new_page(), [], []
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    expect(page.locator("#status")).to_have_text("Ready.")
    yield page
    context.close()
    assert complaints == [], complaints
    assert all(url.startswith((server.url, "data:")) for url in asked), asked


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as expect_

    return expect_(locator, "")


def slide(page: Any, name: str, value: float) -> None:
    page.locator(f"#{name}").fill(str(value))


def generate(page: Any) -> str:
    """Press the button, and wait for the end; returns what stands on the sheet."""
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_contain_text(" s")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    text: str = page.locator("#output").text_content()
    return text


def point_at(word: Any) -> None:
    """Hover over a word of the sheet. It is in view first: scrolling hides the tip, one frame later."""
    word.scroll_into_view_if_needed()
    word.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    word.hover()


def colors_of(locator: Any) -> tuple[str, str]:
    """The color of an element's text, and that of what is behind it."""
    text, background = locator.evaluate(
        "(element) => { let at = element;"
        "while (getComputedStyle(at).backgroundColor === 'rgba(0, 0, 0, 0)') at = at.parentElement;"
        "return [getComputedStyle(element).color, getComputedStyle(at).backgroundColor]; }"
    )
    return text, background


def contrast(one: str, other: str) -> float:
    """Of two colors as a browser writes them: from 1 to 21, as WCAG 2.2 has it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    """The relative luminance: from 0, black, to 1, white."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
