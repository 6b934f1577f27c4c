"""The page's tabs, in a real browser: Surprisal, Classify, and how one gets to them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from tests.support.browsing import browser as browser
from tests.support.browsing import browser_only, expect, open_page, point_at
from tests.support.browsing import server as server
from tests.support.serving import Running

TEXT = "The old king slept.\n\nSeñor 🙂 Nebuchadnezzar laughed."
LABELS = ["sports", "science and technology"]


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """A fresh one."""
    yield from open_page(browser, server)


def measure(page: Any, text: str = TEXT) -> None:
    page.get_by_role("tab", name="Surprisal").click()
    page.get_by_label("Text to measure").fill(text)
    page.get_by_role("button", name="Measure").click()
    expect(page.locator("#measure-status")).to_contain_text("tokens/s")


# Surprisal -----------------------------------------------------------------------------------------------------------


@browser_only
def test_every_word_is_tinted_by_its_bits(page: Any, demo_int8: Model) -> None:
    measure(page)
    found = runtime.surprisal(TEXT, model=demo_int8)
    words = page.locator("#measured b")
    assert words.all_text_contents() == [word.text for word in found.words]
    bins = [min(7, int((word.surprisal or 0) // 2)) for word in found.words]
    classes = [word.get_attribute("class") for word in words.all()]
    assert classes == [f"u{index + 1 if index else 0}" for index in bins]
    assert page.locator("#measured").text_content() == TEXT
    numbers = dict(
        zip(
            page.locator("#numbers dt").all_text_contents(),
            page.locator("#numbers dd").all_text_contents(),
            strict=True,
        )
    )
    perplexity = 2 ** (found.total / len(found.tokens))
    assert math.isclose(float(numbers["perplexity"].replace(",", "")), perplexity, rel_tol=0.01)
    assert numbers["words"] == str(len(found.words))
    assert numbers["tokens"] == str(len(found.tokens))
    counts = [int(text or 0) for text in page.locator("#histogram .well span").all_text_contents()]
    assert counts == [bins.count(index) for index in range(8)]
    shares = page.locator("#ranks dd:not(.bar)").all_text_contents()
    n_first = sum(token.rank == 1 for token in found.tokens)
    assert shares[0] == f"{max(1, math.floor(100 * n_first / len(found.tokens) + 0.5))} %"


@browser_only
def test_a_word_shows_its_rank_and_what_was_likelier(page: Any, demo_int8: Model) -> None:
    measure(page)
    found = runtime.surprisal(TEXT, model=demo_int8, top=8)
    point_at(page.locator("#measured b").nth(2))
    tip = page.locator("#tip")
    (token,) = found.tokens[slice(*found.words[2].tokens)]
    expect(tip).to_contain_text(f"rank {token.rank}")
    shown = [name.replace("·", " ").replace("↵", "\n") for name in tip.locator("dt").all_text_contents()]
    expected = [one.text for one in token.top]
    assert shown == (expected if token.text in expected else [*expected, token.text])
    expect(tip.locator("dt.chosen")).to_have_text(token.text.replace(" ", "·"))
    assert tip.locator("button").count() == 0


@browser_only
def test_the_keyboard_measures_and_walks(page: Any) -> None:
    page.get_by_role("tab", name="Write").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Surprisal")).to_be_focused()
    page.get_by_label("Text to measure").fill(TEXT)
    page.get_by_label("Text to measure").press("Control+Enter")
    expect(page.locator("#measure-status")).to_contain_text("tokens/s")
    words = page.locator("#measured b")
    words.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(words.nth(1)).to_be_focused()
    expect(page.locator("#tip")).to_contain_text("bits: one in")
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()
    page.locator("#histogram button").last.focus()
    pale = page.locator("#measured b.beyond")
    assert 0 < pale.count() < words.count()
    page.get_by_label("Text to measure").focus()
    expect(pale).to_have_count(0)


@browser_only
@pytest.mark.parametrize(("button", "option"), [("Words as TSV", []), ("Tokens as TSV", ["--tokens"])])
def test_what_is_saved_is_what_the_command_prints(
    page: Any, demo_int8: Model, tmp_path: Path, button: str, option: list[str]
) -> None:
    measure(page)
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    download.value.save_as(tmp_path / "page.tsv")
    command = [sys.executable, "-m", "runtime", "surprisal", "--tsv", *option, "--model", str(demo_int8.folder)]
    done = subprocess.run(command, input=TEXT.encode(), capture_output=True, timeout=60, check=True)
    saved = (tmp_path / "page.tsv").read_text(encoding="utf-8").splitlines()
    printed = done.stdout.decode().splitlines()
    assert len(saved) == len(printed) > 4
    for one, other in zip(saved, printed, strict=True):
        assert [*map(value, one.split("\t"))] == [*map(value, other.split("\t"))]


def value(cell: str) -> object:
    """A number is compared as one: the last digit may be rounded in another way."""
    try:
        return pytest.approx(float(cell), abs=2e-6)
    except ValueError:
        return cell


@browser_only
def test_a_long_text_shows_its_progress_and_can_be_stopped(page: Any, server: Running) -> None:
    page.get_by_role("tab", name="Surprisal").click()
    page.get_by_label("Text to measure").fill("Once upon a time there was a mouse. " * 3000)
    page.get_by_role("button", name="Measure").click()
    expect(page.locator("#measured .waiting")).to_contain_text("characters/s")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#measure-status")).to_have_text("Stopped.")
    expect(page.locator("#measured .waiting")).to_have_count(0)
    assert page.locator("#save-words").is_disabled()


@browser_only
def test_a_place_in_the_queue_is_shown_on_the_sheet(page: Any) -> None:
    """One event after another, as a server sends them that is busy."""
    page.get_by_role("tab", name="Surprisal").click()
    held = "new ReadableStream({ start(control) { control.enqueue(new TextEncoder().encode(': queued 3\\n\\n')); } })"
    page.evaluate(f"() => {{ window.fetch = async () => new Response({held}); }}")
    page.get_by_label("Text to measure").fill(TEXT)
    page.get_by_role("button", name="Measure").click()
    expect(page.locator("#measured .waiting")).to_have_text("Queued: 2 requests go before this one.")
    page.get_by_role("tab", name="Write").click()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#output .waiting")).to_have_text("Queued: 2 requests go before this one.")


@browser_only
def test_an_error_is_shown_where_the_words_would_be(page: Any) -> None:
    page.route("**/surprisal", lambda route: route.fulfill(body=f"data: {json.dumps(ERROR)}\n\n"))
    page.get_by_role("tab", name="Surprisal").click()
    page.get_by_label("Text to measure").fill(TEXT)
    page.get_by_role("button", name="Measure").click()
    expect(page.locator("#measured .wrong")).to_have_text("the server is busy")
    expect(page.locator("#measure-status")).to_have_text("That did not work.")


ERROR = {"error": {"message": "the server is busy", "type": "rate_limit_error", "param": None, "code": None}}


# Classify ------------------------------------------------------------------------------------------------------------


@browser_only
def test_a_model_without_labels_has_no_tab_for_them(page: Any, server: Running) -> None:
    expect(page.get_by_role("tab", name="Classify")).to_have_count(0)
    page.goto(f"{server.url}/#classify")
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready.")
    expect(page.locator("#classify")).to_be_hidden()
    expect(page.locator("#write")).to_be_visible()


@pytest.fixture
def with_labels(browser: Any, server: Running) -> Iterator[Any]:
    """The page of a server whose model has labels; the address names their tab."""
    context = browser.new_context()
    page = context.new_page()

    def add_labels(route: Any) -> None:
        listed = route.fetch().json()
        listed["data"][0]["labels"] = LABELS
        route.fulfill(json=listed)

    page.route("**/v1/models", add_labels)
    page.goto(f"{server.url}/#classify")
    expect(page.locator("#classify")).to_be_visible()
    yield page
    context.close()


@browser_only
def test_a_model_with_labels_classifies(with_labels: Any, demo_int8: Model) -> None:
    page = with_labels
    asked: list[Any] = []

    def answer(route: Any) -> None:
        asked.append(json.loads(route.request.post_data))
        scores = [{"label": LABELS[0], "score": 0.25}, {"label": LABELS[1], "score": 0.75}]
        route.fulfill(json={"results": [{"label": LABELS[1], "scores": scores}]})

    page.route("**/classify", answer)
    page.get_by_label("Text to classify").fill("A rocket.")
    page.get_by_label("Text to classify").press("Control+Enter")
    expect(page.locator("#labels .label")).to_have_text(LABELS[1])
    assert asked == [{"model": demo_int8.folder.name, "input": "A rocket."}]
    assert page.locator("#labels dt").all_text_contents() == [LABELS[1], LABELS[0]]
    assert page.locator("#labels dd:not(.bar)").all_text_contents() == ["75 %", "25 %"]


@browser_only
def test_a_classifier_has_no_other_tab(with_labels: Any) -> None:
    """It writes no text, and measures none."""
    assert with_labels.get_by_role("tab").all_text_contents() == ["Classify"]
    expect(with_labels.locator("#write")).to_be_hidden()


@browser_only
def test_labels_of_tokens_are_marked_in_the_text(with_labels: Any) -> None:
    page = with_labels
    text = "🙂 Ada met Bob."
    spans = [
        {"text": "Ada", "span": [2, 5], "label": "NAME", "score": 0.875},
        {"text": "Bob", "span": [10, 13], "label": "NAME", "score": 0.5},
    ]
    page.route("**/classify", lambda route: route.fulfill(json={"results": [{"tokens": [], "spans": spans}]}))
    page.get_by_label("Text to classify").fill(text)
    page.get_by_role("button", name="Classify").click()
    assert page.locator("#labels b").all_text_contents() == ["AdaNAME", "BobNAME"]
    assert page.locator("#labels").text_content().replace("NAME", "") == text
    page.locator("#labels b").first.focus()
    expect(page.locator("#tip")).to_have_text("NAME, 88 %")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_have_text("NAME, 50 %")


@browser_only
def test_a_regression_shows_its_value(with_labels: Any) -> None:
    page = with_labels
    scores = [{"label": "stars", "score": 4.25}]
    page.route("**/classify", lambda route: route.fulfill(json={"results": [{"label": "stars", "scores": scores}]}))
    page.get_by_label("Text to classify").fill("A rocket.")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#labels")).to_have_text("stars: 4.250")
    assert page.locator("#labels dl").count() == 0


@browser_only
def test_what_goes_wrong_with_a_text_to_classify_is_shown(with_labels: Any) -> None:
    page = with_labels
    page.route("**/classify", lambda route: route.fulfill(status=429, json=ERROR))
    page.get_by_label("Text to classify").fill("A rocket.")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#labels .wrong")).to_have_text("the server is busy")
    page.route("**/classify", lambda route: route.abort())
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#labels .wrong")).to_contain_text("start it again, and press Classify.")


# all tabs ------------------------------------------------------------------------------------------------------------


@browser_only
@pytest.mark.parametrize("width", [320, 390])
def test_no_tab_is_too_narrow_for_a_phone(browser: Any, server: Running, width: int) -> None:
    phone = {"viewport": {"width": width, "height": 844}, "has_touch": True, "is_mobile": True}
    for page in open_page(browser, server, **phone):
        measure(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        page.locator("#measured b").last.tap()
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        small = [
            target.get_attribute("id")
            for target in page.locator("button:visible:not(#histogram button)").all()
            if (size := target.bounding_box())["height"] < 44 or size["width"] < 44
        ]
        assert small == []


@browser_only
def test_everything_on_the_tab_has_a_name(page: Any) -> None:
    measure(page)
    for control in page.locator("button:visible, textarea:visible").all():
        assert '"' in control.aria_snapshot()
    assert page.get_by_role("tabpanel", name="Surprisal").count() == 1
