"""The page, in a real browser: on narrow and wide screens, in light and dark, and for those who hear it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browsing import browser as browser
from tests.support.browsing import (
    browser_only,
    colors_of,
    contrast,
    expect,
    generate,
    luminance,
    open_page,
    point_at,
    slide,
)
from tests.support.browsing import server as server
from tests.support.serving import Running


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """A fresh one."""
    yield from open_page(browser, server)


@browser_only
def test_nothing_jumps_while_it_writes(page: Any) -> None:
    places = [page.locator(name) for name in ("#go", "#stop", "#copy-curl", "#output", "#write aside", "#temperature")]
    before = [place.bounding_box() for place in places]
    slide(page, "max_tokens", 40)
    generate(page)
    after = [place.bounding_box() for place in places]
    for one, other in zip(before, after, strict=True):
        assert (one["x"], one["y"], one["width"]) == (other["x"], other["y"], other["width"])


@browser_only
@pytest.mark.parametrize("width", [320, 390, 860, 1400])
def test_no_screen_is_too_narrow(browser: Any, server: Running, width: int) -> None:
    for page in open_page(browser, server, viewport={"width": width, "height": 800}):
        slide(page, "max_tokens", 40)
        generate(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        point_at(page.locator("#output b").last)
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@browser_only
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Any, server: Running, scheme: str) -> None:
    """Contrast of at least 4.5, WCAG 2.2's level AA, for what is read."""
    for page in open_page(browser, server, color_scheme=scheme):
        places = ("body", "header p", "#go", "#prompt", "#status")
        colors = [colors_of(page.locator(name).first) for name in places]
        assert min(contrast(*pair) for pair in colors) >= 4.5
        backgrounds = {background for _, background in colors}
        assert (luminance(colors[0][1]) < 0.1) == (scheme == "dark"), backgrounds


@browser_only
def test_everything_has_a_name(page: Any) -> None:
    """For those who hear the page: every control says what it is."""
    for control in page.locator("button:visible, input:visible, select:visible, textarea:visible").all():
        snapshot = control.aria_snapshot()
        assert re.search(r'^- \w+ ".+"', snapshot), snapshot


TOUCH = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@browser_only
def test_fingers_have_hints_and_targets_of_their_own(browser: Any, server: Running) -> None:
    """At least 44 by 44 CSS pixels, WCAG 2.2's level AAA, but for words in a text."""
    for page in open_page(browser, server, **TOUCH):
        slide(page, "max_tokens", 16)
        generate(page)
        page.locator("#output b").nth(2).tap()
        tip = page.locator("#tip")
        expect(tip).to_be_visible()
        expect(page.get_by_text("Tap a word to see what else was likely")).to_be_visible()
        for hint in ("Point at a word", "generates"):
            expect(page.locator("#write").get_by_text(hint)).to_be_hidden()
        small = [
            (target.get_attribute("id"), target.inner_text(), box)
            for target in page.locator("button:visible, fieldset span:visible, input:not([type=radio]):visible").all()
            if (box := target.bounding_box())["height"] < 44 or box["width"] < 44
        ]
        assert small == []
        words = page.locator("#output b").all_text_contents()
        other = tip.locator("button").nth(1)
        name = other.inner_text().replace("·", " ").replace("↵", "\n")
        other.tap()
        expect(page.locator("#status")).to_contain_text(" s;")
        assert page.locator("#output b").all_text_contents()[:3] == [*words[:2], name]


@browser_only
def test_a_tap_elsewhere_puts_the_alternatives_away(browser: Any, server: Running) -> None:
    for page in open_page(browser, server, **TOUCH):
        slide(page, "max_tokens", 16)
        generate(page)
        page.locator("#output b").nth(2).tap()
        expect(page.locator("#tip")).to_be_visible()
        page.get_by_role("heading", name="gpt2-edge").tap()
        expect(page.locator("#tip")).to_be_hidden()


@browser_only
def test_pointers_have_hints_of_their_own(page: Any) -> None:
    legend = page.locator("#legend")
    expect(legend.get_by_text("Point at a word")).to_be_visible()
    expect(legend.get_by_text("Tap a word")).to_be_hidden()
