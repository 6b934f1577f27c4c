"""The picture of the server's page in the documents: `python -m tests.support.page_picture` writes docs/page.png.

Needs chromium, and models/demo-int8 as `make demo` builds it.
"""

from __future__ import annotations

import shutil

import runtime
from tests.support.browsing import FLAGS, expect, generate, slide
from tests.support.building import REPOSITORY
from tests.support.serving import running

PROMPT = "Once upon a time there was a little mouse who"
OPTIONS = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "max_tokens": 112}
SIZE = {"width": 1180, "height": 760}


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
        page.locator("#prompt").fill(PROMPT)
        page.locator("#seed").fill("7")
        for name, value in OPTIONS.items():
            slide(page, name, value)
        generate(page)
        page.locator("#output b").nth(21).hover()
        expect(page.locator("#tip")).to_be_visible()
        page.screenshot(path=REPOSITORY / "docs" / "page.png")
        browser.close()


if __name__ == "__main__":
    main()
