"""The page of a server with several models, in a real browser: one is chosen, and everything follows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from runtime.server.transport.page import FILES, SCRIPTS
from tests.conftest import REPOSITORY
from tests.support.browsing import browser as browser
from tests.support.browsing import browser_only, colors_of, contrast, expect, generate, open_page, slide
from tests.support.browsing import server as server
from tests.support.checkpoints import build_model, write_checkpoint
from tests.support.classifiers import LABELS, write_classifier
from tests.support.serving import Running, running, wait_until

PROMPT = "Once upon a time"
TINY, SENTIMENT = "org/tiny & small", "a-classifier-whose-name-is-longer-than-a-phone-is-wide"
N_TINY = 64  # positions
NAMES = ["story", TINY, SENTIMENT]
PAGE = REPOSITORY / "runtime" / "server" / "transport" / "static"


def test_all_files_of_the_page_are_served_and_loaded() -> None:
    assert {name for name, _ in FILES.values()} == {path.name for path in PAGE.iterdir()}
    assert re.findall(r'<script src="(.+?)"', (PAGE / "page.html").read_text(encoding="utf-8")) == [*SCRIPTS]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    checkpoint = tmp_path_factory.mktemp("tiny") / "tiny"
    write_checkpoint(checkpoint, n_positions=N_TINY)
    with Model(build_model(checkpoint), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    checkpoint = tmp_path_factory.mktemp("labels") / "labels"
    write_classifier(checkpoint)
    with Model(build_model(checkpoint), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def several(demo_int8: Model, tiny: Model, classifier: Model) -> Iterator[Running]:
    with running(demo_int8, tiny, classifier, alias=NAMES) as one:
        yield one


@pytest.fixture
def page(browser: Any, several: Running) -> Iterator[Any]:
    """A fresh one."""
    yield from open_page(browser, several)


def choice(page: Any) -> Any:
    return page.get_by_role("combobox", name="model")


def tabs(page: Any) -> list[str]:
    names: list[str] = page.get_by_role("tab").all_text_contents()
    return names


@browser_only
def test_the_first_model_answers_until_another_is_chosen(page: Any, demo_int8: Model, tiny: Model) -> None:
    assert choice(page).locator("option").all_text_contents() == NAMES
    expect(choice(page)).to_have_value("story")
    expect(page.locator("#model")).to_be_hidden()
    page.get_by_label("Prompt").fill(PROMPT)
    slide(page, "temperature", 0)
    slide(page, "max_tokens", 16)
    for name, model in (("story", demo_int8), (TINY, tiny)):
        choice(page).select_option(name)
        assert generate(page) == PROMPT + runtime.generate(PROMPT, model=model, max_new_tokens=16)
        expect(page.locator("#status")).to_contain_text(f"{name}: 16 tokens in")


@browser_only
def test_every_request_and_every_copy_names_the_chosen_model(page: Any, tiny: Model, classifier: Model) -> None:
    asked: list[tuple[str, str]] = []
    page.on("request", lambda one: one.method == "POST" and asked.append((one.url.split("/")[-1], named(one))))
    choice(page).select_option(TINY)
    slide(page, "max_tokens", 8)
    generate(page)
    page.get_by_role("button", name="Copy as curl").click()
    assert f'"model": "{TINY}"' in page.evaluate("() => navigator.clipboard.readText()")
    page.get_by_role("button", name="Copy as Python").click()
    assert f'model="{TINY}"' in page.evaluate("() => navigator.clipboard.readText()")
    page.get_by_role("tab", name="Surprisal").click()
    page.get_by_label("Text to measure").fill(PROMPT)
    page.get_by_role("button", name="Measure").click()
    n_tokens = len(runtime.surprisal(PROMPT, model=tiny).tokens)
    expect(page.locator("#measure-status")).to_contain_text(f"{TINY}: {n_tokens} tokens in")
    choice(page).select_option(SENTIMENT)
    page.get_by_label("Text to classify").fill(PROMPT)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#labels .label")).to_have_text(runtime.classify(PROMPT, model=classifier).label)
    expect(page.locator("#classify-status")).to_contain_text(f"{SENTIMENT}: ")
    assert asked == [("completions", TINY), ("surprisal", TINY), ("classify", SENTIMENT)]


def named(request: Any) -> Any:
    return json.loads(request.post_data)["model"]


@browser_only
def test_tabs_and_limits_are_those_of_the_chosen_model(page: Any) -> None:
    slider = page.locator("#max_tokens")
    assert tabs(page) == ["Write", "Surprisal"]
    page.get_by_role("tab", name="Surprisal").click()
    choice(page).select_option(SENTIMENT)
    assert tabs(page) == ["Classify"]
    expect(page.locator("#classify")).to_be_visible()
    expect(page.locator("#surprisal")).to_be_hidden()
    choice(page).select_option(TINY)
    assert tabs(page) == ["Write", "Surprisal"]
    expect(page.locator("#surprisal")).to_be_visible()  # where one was
    page.get_by_role("tab", name="Write").click()
    assert (slider.get_attribute("max"), slider.input_value()) == (str(N_TINY - 8), str(N_TINY - 8))
    choice(page).select_option("story")
    assert slider.input_value() == "128"  # what was asked for before
    slide(page, "max_tokens", 200)
    choice(page).select_option(TINY)
    expect(page.locator("output[for=max_tokens]")).to_have_text(str(N_TINY - 8))
    choice(page).select_option("story")
    assert slider.input_value() == "200"


@browser_only
def test_the_address_names_the_choice(page: Any, several: Running) -> None:
    choice(page).select_option(TINY)
    page.get_by_role("tab", name="Surprisal").click()
    linked = page.url
    page.get_by_role("tab", name="Write").click()
    for address in (page.url, linked):
        page.goto("about:blank")
        page.goto(address)
        expect(page.locator("#status")).to_have_text("Ready.")
        expect(choice(page)).to_have_value(TINY)
    expect(page.locator("#surprisal")).to_be_visible()
    choice(page).select_option("story")
    assert page.url == f"{several.url}/#surprisal"


@browser_only
def test_an_address_that_names_no_model_of_the_server_says_so(page: Any, several: Running) -> None:
    page.goto(f"{several.url}/?model=gone#surprisal")
    told = "There is no model “gone” on this server. story is chosen instead."
    expect(page.locator("#measure-status")).to_have_text(told)
    expect(choice(page)).to_have_value("story")
    assert page.url == f"{several.url}/#surprisal"


@browser_only
def test_a_choice_by_key_ends_what_is_written_and_keeps_it(page: Any, several: Running) -> None:
    def ask_for_more(route: Any) -> None:
        more = {"max_tokens": 4000, "min_new_tokens": 4000, "overflow": "slide"}
        route.continue_(post_data=json.dumps({**json.loads(route.request.post_data), **more}))

    page.route("**/v1/completions", ask_for_more)
    page.get_by_label("Prompt").press("Control+Enter")
    expect(page.locator("#output b").nth(3)).to_be_visible()
    choice(page).focus()
    page.keyboard.press("ArrowDown")
    expect(choice(page)).to_have_value(TINY)
    expect(choice(page)).to_be_focused()
    expect(page.locator("#status")).to_have_text("story: Stopped.")
    wait_until(lambda: several.engine.n_open == 0, 5)
    assert page.locator("#output b").count() > 3


@browser_only
def test_where_there_is_one_model_there_is_no_choice(browser: Any, server: Running) -> None:
    for page in open_page(browser, server):
        expect(page.locator("#choice")).to_be_hidden()
        expect(page.locator("#model")).to_have_text(server.engine.model_id)
        slide(page, "max_tokens", 8)
        generate(page)
        expect(page.locator("#status")).to_have_text(re.compile(r"^\d+ tokens? in "))


@browser_only
@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_choice_fits_on_a_phone(browser: Any, several: Running, width: int, scheme: str) -> None:
    phone = {"viewport": {"width": width, "height": 844}, "has_touch": True, "is_mobile": True}
    for page in open_page(browser, several, color_scheme=scheme, **phone):
        choice(page).select_option(SENTIMENT)
        page.get_by_label("Text to classify").fill(PROMPT)
        page.get_by_role("button", name="Classify").click()
        expect(page.locator("#labels dt")).to_have_count(len(LABELS))
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        box = choice(page).bounding_box()
        assert box["height"] >= 44
        assert box["x"] + box["width"] <= width
        for name in ("#choice", "#models", "#classify-status"):
            assert contrast(*colors_of(page.locator(name))) >= 4.5
