"""The page in a real browser, as fixtures, and hands and eyes for it."""

from __future__ import annotations

import os
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
