"""The pictures of the server's page in the documents: `python -m tests.support.page_picture` writes them.

Needs chromium, and models/demo-int8 as `make demo` builds it.
"""

from __future__ import annotations

import shutil
from typing import Any

import runtime
from tests.support.browsing import FLAGS, expect, generate, slide
from tests.support.building import REPOSITORY
from tests.support.serving import running

PROMPT = "Once upon a time there was a little mouse who"
OPTIONS = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "max_tokens": 112}
SIZE = {"width": 1180, "height": 760}


TEXT = """\
Once upon a time there was a little mouse who lived in the wall of an old house. Every night she went into the kitchen \
and looked for bread.

One evening the cat, whose name was Nebuchadnezzar, sat by the stove. The quarterly report exceeded all expectations, \
said the mouse, and the cat laughed until the morning.
"""
WORD = 33  # its alternatives are shown


def main() -> None:
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        runtime.load(REPOSITORY / "models" / "demo-int8") as model,
        running(model) as server,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(server.url)
        expect(page.locator("#status")).to_have_text("Ready.")
        write(page)
        page.screenshot(path=REPOSITORY / "docs" / "page.png")
        measure(page)
        page.screenshot(path=REPOSITORY / "docs" / "page-surprisal.png")
        browser.close()


def write(page: Any) -> None:
    """A story, and the alternatives of one of its words."""
    page.locator("#prompt").fill(PROMPT)
    page.locator("#seed").fill("7")
    for name, value in OPTIONS.items():
        slide(page, name, value)
    generate(page)
    page.locator("#output b").nth(21).hover()
    expect(page.locator("#tip")).to_be_visible()


def measure(page: Any) -> None:
    """A text, and what was likelier in the place of one of its words."""
    page.get_by_role("tab", name="Surprisal").click()
    page.locator("#text").fill(TEXT)
    page.locator("#measure").click()
    expect(page.locator("#measure-status")).to_contain_text("tokens/s")
    page.locator("#text").evaluate("(text) => { text.scrollTop = 0; }")
    page.locator("#measured b").nth(WORD).hover()
    expect(page.locator("#tip")).to_be_visible()


if __name__ == "__main__":
    main()
