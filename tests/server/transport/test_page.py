"""The page, in a real browser: written in, watched, stopped, copied from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from runtime.tasks.library import TASKS
from tests.conftest import REPOSITORY
from tests.support.browsing import browser as browser
from tests.support.browsing import browser_only, expect, generate, open_page, point_at, slide
from tests.support.browsing import server as server
from tests.support.serving import Running, running, wait_until

PROMPT = "Once upon a time there was"
N_LONG = 4000  # tokens: seconds
PAGE = REPOSITORY / "runtime" / "server" / "transport" / "static"


def test_sliders_and_tasks_are_the_apis() -> None:
    from runtime.server.openai.fields import CompletionRequest

    script = (PAGE / "page.js").read_text(encoding="utf-8")
    sliders = re.findall(r'^  \["(\w+)", ', script, re.MULTILINE)
    assert len(sliders) == 9
    assert {*sliders, "seed", "stop"} < CompletionRequest.model_fields.keys()
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    tasks = re.findall(r'name="task" value="(\w*)"', page)
    assert {*tasks} - {""} < TASKS.keys()
    languages = re.findall(r"<option>(\w+)</option>", page)
    assert languages == [*TASKS["translate"].fields["examples"].values]


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """A fresh one."""
    yield from open_page(browser, server)


def make_long(page: Any) -> None:
    """The next continuation does not end by itself for a while."""
    more = {"max_tokens": N_LONG, "min_new_tokens": N_LONG, "overflow": "slide"}

    def ask_for_more(route: Any) -> None:
        route.continue_(post_data=json.dumps({**json.loads(route.request.post_data), **more}))

    page.route("**/v1/completions", ask_for_more)


@browser_only
def test_what_is_typed_is_continued_as_in_python(page: Any, demo_int8: Model) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("seed").fill("18446744073709551615")  # beyond what a JavaScript number holds
    slide(page, "max_tokens", 40)
    slide(page, "top_k", 5)
    expected = runtime.generate(
        PROMPT, model=demo_int8, max_new_tokens=40, temperature=0.8, top_p=0.9, top_k=5, seed=2**64 - 1
    )
    assert generate(page) == PROMPT + expected
    expect(page.locator("#status")).to_contain_text("40 tokens in")
    expect(page.locator("#speed")).to_contain_text("tokens/s")
    slide(page, "temperature", 0)  # greedy: what chooses from a distribution is not sent
    assert generate(page) == PROMPT + runtime.generate(PROMPT, model=demo_int8, max_new_tokens=40)


@browser_only
def test_the_keyboard_generates_and_stops(page: Any, server: Running) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    make_long(page)
    page.get_by_label("Prompt").press("Control+Enter")
    expect(page.locator("#output b").nth(3)).to_be_visible()  # it streams
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    wait_until(lambda: server.engine.n_open == 0, 5)
    assert page.locator("#output b").count() < N_LONG


@browser_only
def test_the_button_stops_too(page: Any, server: Running) -> None:
    make_long(page)
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    wait_until(lambda: server.engine.n_open == 0, 5)


@browser_only
def test_a_token_shows_what_else_was_likely(page: Any, demo_int8: Model) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    slide(page, "temperature", 0)
    slide(page, "max_tokens", 16)
    generate(page)
    (known,) = runtime.complete(PROMPT, model=demo_int8, max_new_tokens=16, logprobs=8)
    words, tip = page.locator("#output b"), page.locator("#tip")
    point_at(words.nth(4))
    expect(tip).to_be_visible()
    shown = [name.replace("·", " ").replace("↵", "\n") for name in tip.locator("dt").all_text_contents()]
    assert shown == [demo_int8.tokenizer.decode([id_]) for id_ in known.top_logprobs[4]]
    expect(tip.locator("dt.chosen")).to_have_text(shown[0].replace(" ", "·").replace("\n", "↵"))
    page.get_by_role("heading", name="gpt2-edge").hover()
    expect(tip).to_be_hidden()
    words.nth(0).focus()
    expect(tip).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(words.nth(1)).to_be_focused()
    expect(words.nth(1)).to_have_attribute("aria-describedby", "tip")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


@browser_only
def test_a_character_of_several_tokens_is_one_word(page: Any) -> None:
    """The demo has no emoji of one token; it is made to write one by its bytes."""
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in CHUNKS) + "data: [DONE]\n\n",
        ),
    )
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_contain_text("ended by")
    assert page.locator("#output b").all_text_contents() == [" a", "🙂", "!🙂", " b", "\n"]
    expect(page.locator("#output .wrong")).to_have_count(0)
    point_at(page.locator("#output b").last)  # nothing but the end of a line can be pointed at, too
    expect(page.locator("#tip")).to_be_visible()


def chunk(text: str, tokens: list[str], offsets: list[int], end: str | None = None) -> dict[str, Any]:
    n = len(tokens)
    logprobs = {"tokens": tokens, "token_logprobs": [-1.0] * n, "top_logprobs": [{}] * n, "text_offset": offsets}
    return {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": end, "gpt2_edge": {}}]}


CHUNKS = [
    chunk(" a", [" a"], [10]),
    chunk("🙂!🙂", ["bytes:\\xf0", "bytes:\\x9f", "!🙂"], [12, 12, 13]),
    chunk(" b", [" b"], [15]),
    chunk("\n", ["\n"], [17], "stop"),
]


@browser_only
@pytest.mark.parametrize("task", ["Summarize", "Translate", "Answer", "Read"])
def test_a_task_shows_its_answer(page: Any, demo_int8: Model, task: str) -> None:
    page.get_by_role("radio", name=task).check(force=True)
    page.locator("#prompt").fill("The king has a daughter. She lives in the wood.")
    page.get_by_label("seed").fill("3")
    fields: dict[str, Any] = {}
    if task == "Translate":
        page.locator("#to").select_option("French")
        fields["to"] = "French"
    if task == "Read":
        page.get_by_label("question").fill("Where does she live?")
        fields["question"] = "Where does she live?"
    generate(page)
    if task == "Summarize":
        fields["seed"] = 3  # the others are greedy: the server takes the page's seed all the same
    answer = runtime.perform(task.lower(), "The king has a daughter. She lives in the wood.", model=demo_int8, **fields)
    expect(page.locator("#answer")).to_contain_text(answer.text or "None.")


@browser_only
def test_an_option_is_chosen(page: Any, demo_int8: Model) -> None:
    page.get_by_role("radio", name="Choose").check(force=True)
    page.locator("#prompt").fill("The _ sat on the throne.")
    page.locator("#options").fill("king, spoon")
    assert generate(page) == "The king sat on the throne."
    answer = runtime.perform("choose", "The _ sat on the throne.", model=demo_int8, options=["king", "spoon"])
    assert page.locator("#answer dt").all_text_contents() == sorted(
        answer.probabilities, key=lambda name: -answer.probabilities[name]
    )


@browser_only
def test_an_error_is_shown_where_the_text_would_be(page: Any) -> None:
    page.get_by_role("radio", name="Read").check(force=True)
    page.locator("#prompt").fill("A passage.")
    page.get_by_label("question").fill("")
    page.route("**/v1/completions", lambda route: route.fulfill(status=200, body=f"data: {json.dumps(ERROR)}\n\n"))
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#output")).to_have_text("read needs question")


ERROR = {"error": {"message": "read needs question", "type": "invalid_request_error", "param": None, "code": None}}


@browser_only
def test_what_is_copied_does_the_same(page: Any, tmp_path: Path) -> None:
    page.get_by_label("Prompt").fill("It's \"her\" 'sister' \\ €,\nand")
    page.get_by_label("seed").fill("18446744073709551615")
    page.get_by_label("stop").fill("\\n")
    slide(page, "top_k", 7)
    slide(page, "max_tokens", 24)
    text = generate(page)
    page.get_by_role("button", name="Copy as Python").click()
    code = page.evaluate("() => navigator.clipboard.readText()")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=60, check=False
    )
    assert text.endswith(done.stdout.removesuffix("\n")), done.stderr
    assert done.stdout.strip()
    if os.name == "posix" and shutil.which("curl"):
        page.get_by_role("button", name="Copy as curl").click()
        command = page.evaluate("() => navigator.clipboard.readText()")
        reply = subprocess.run(["sh", "-c", f"curl -s {command[5:]}"], capture_output=True, timeout=60, check=True)
        assert json.loads(reply.stdout)["choices"][0]["text"] == done.stdout.removesuffix("\n")


@browser_only
def test_a_key_is_asked_for(browser: Any, demo_int8: Model) -> None:
    with running(demo_int8, api_key="swordfish") as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#status")).to_contain_text("asks for a key")
        page.get_by_label("key").fill("swordfish")
        page.get_by_label("key").press("Tab")
        expect(page.locator("#status")).to_have_text("Ready.")
        slide(page, "max_tokens", 8)
        assert len(generate(page)) > 10
        context.close()


# what else was likely, as a way on ------------------------------------------------------------------------------------


@browser_only
@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_an_alternative_is_gone_on_from(page: Any, demo_int8: Model, by: str) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    slide(page, "temperature", 0)
    slide(page, "max_tokens", 16)
    generate(page)
    page.get_by_label("Prompt").fill("Something else")  # the branch is of what was written
    (known,) = runtime.complete(PROMPT, model=demo_int8, max_new_tokens=16, logprobs=3)
    kept = demo_int8.tokenizer.decode(known.ids[:4])
    other = demo_int8.tokenizer.decode([list(known.top_logprobs[4])[1]])
    word = page.locator("#output b").nth(4)
    if by == "mouse":
        point_at(word)
        page.locator("#tip button").nth(1).click()
    else:
        word.focus()
        for key in ("Enter", "ArrowDown", "Enter"):
            page.keyboard.press(key)
    expect(page.locator("#status")).to_contain_text("16 tokens in")
    rest = runtime.generate(PROMPT + kept + other, model=demo_int8, max_new_tokens=16)
    assert page.locator("#output").text_content() == PROMPT + kept + other + rest
    expect(page.locator("#tip")).to_be_hidden()
    point_at(page.locator("#output b").nth(4))  # it shows what it took the place of, and goes on from that
    shown = [name.replace("·", " ").replace("↵", "\n") for name in page.locator("#tip dt").all_text_contents()]
    assert shown[:2] == [demo_int8.tokenizer.decode([id_]) for id_ in list(known.top_logprobs[4])[:2]]
    expect(page.locator("#tip dt.chosen")).to_have_text(other.replace(" ", "·").replace("\n", "↵"))


@browser_only
def test_escape_leads_from_an_alternative_back_to_its_word(page: Any) -> None:
    slide(page, "max_tokens", 16)
    generate(page)
    words = page.locator("#output b")
    words.nth(0).focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#tip button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(words.nth(0)).to_be_focused()
    expect(page.locator("#tip")).to_be_hidden()


@browser_only
def test_what_is_no_text_is_not_offered(page: Any) -> None:
    top = {" a": -1.0, "<|endoftext|>": -1.5, "bytes:\\xf0": -2.0}
    one = chunk(" a", [" a"], [10], "stop")
    one["choices"][0]["logprobs"]["top_logprobs"] = [top]
    body = f"data: {json.dumps(one)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    generate(page)
    point_at(page.locator("#output b").first)
    assert page.locator("#tip dt").all_text_contents() == ["·a", "<|endoftext|>", "bytes:\\xf0"]
    assert page.locator("#tip button").all_text_contents() == ["·a"]


@browser_only
def test_a_task_has_no_branches(page: Any) -> None:
    page.get_by_role("radio", name="Answer").check(force=True)
    generate(page)
    point_at(page.locator("#output b").first)
    expect(page.locator("#tip")).to_be_visible()
    assert page.locator("#tip button").count() == 0


# limits and losses ----------------------------------------------------------------------------------------------------


@browser_only
@pytest.mark.parametrize("task", ["Continue", "Answer"])
def test_the_token_slider_leads_to_no_refusal(page: Any, demo_int8: Model, task: str) -> None:
    n_positions = demo_int8.config.n_positions
    page.get_by_role("radio", name=task).check(force=True)
    page.locator("#prompt").fill("The king " * ((n_positions - 170) // 2))
    page.locator("#max_tokens").press("End")
    assert int(page.locator("#max_tokens").input_value()) > n_positions - 9
    generate(page)
    expect(page.locator("#output .wrong")).to_have_count(0)
    expect(page.locator("#status")).to_contain_text("ended by")


@browser_only
@pytest.mark.parametrize(("limit", "most"), [(100, 96), (9, 9), (3, 3)])
def test_the_token_slider_knows_the_servers_limit(browser: Any, demo_int8: Model, limit: int, most: int) -> None:
    with running(demo_int8, max_tokens=limit) as server:
        for page in open_page(browser, server):
            for key in ("Home", "End"):
                page.locator("#max_tokens").press(key)
                generate(page)
                expect(page.locator("#output .wrong")).to_have_count(0)
            assert page.locator("#max_tokens").input_value() == str(most)


@pytest.fixture
def lonely(browser: Any, server: Running) -> Iterator[Any]:
    """A page whose server can be taken away; a browser complains of that on its console."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#status")).to_have_text("Ready.")
    yield page
    context.close()


@browser_only
@pytest.mark.parametrize("how", ["gone", "not ours"])
def test_a_server_that_is_not_there_is_said_in_our_words(lonely: Any, how: str) -> None:
    lonely.route(
        "**/v1/completions",
        lambda route: route.abort() if how == "gone" else route.fulfill(status=502, body="<html>Bad Gateway</html>"),
    )
    lonely.get_by_role("button", name="Generate").click()
    expect(lonely.locator("#output .wrong")).to_have_text(
        "The server does not answer. It may have been stopped: start it again, and press Generate."
    )


@browser_only
def test_a_server_that_is_lost_leaves_what_it_wrote(lonely: Any) -> None:
    body = f"data: {json.dumps(CHUNKS[0])}\n\n"
    lonely.route("**/v1/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    lonely.get_by_role("button", name="Generate").click()
    expect(lonely.locator("#output .wrong")).to_contain_text("The connection to the server was lost")
    assert lonely.locator("#output b").all_text_contents() == [" a"]


@browser_only
def test_what_was_lost_is_gone_on_with(lonely: Any, demo_int8: Model) -> None:
    """The whole is the text that an unbroken connection would have brought."""
    whole = runtime.generate(PROMPT, model=demo_int8, max_new_tokens=24)
    lonely.get_by_label("Prompt").fill(PROMPT)
    slide(lonely, "temperature", 0)
    slide(lonely, "max_tokens", 24)

    def cut(route: Any) -> None:
        """Answer as if the connection broke after 10 tokens, in however many events they come."""
        few = json.loads(route.request.post_data) | {"max_tokens": 10}
        *events, _done, _after = route.fetch(post_data=json.dumps(few)).text().split("\n\n")
        unfinished = [event.replace('"finish_reason":"length"', '"finish_reason":null') for event in events]
        route.fulfill(content_type="text/event-stream", body="\n\n".join([*unfinished, ""]))

    lonely.route("**/v1/completions", cut)
    lonely.get_by_role("button", name="Generate").click()
    expect(lonely.locator("#output .wrong")).to_contain_text("What it wrote until then is above.")
    n_written = lonely.locator("#output b").count()
    assert n_written == 10
    lonely.unroute("**/v1/completions")
    lonely.route("**/v1/completions", lambda route: route.abort())
    lonely.get_by_role("button", name="Go on from here").click()
    expect(lonely.locator("#output .wrong")).to_contain_text("The server does not answer.")
    assert lonely.locator("#output b").count() == n_written  # nothing is lost by that
    lonely.unroute("**/v1/completions")
    lonely.get_by_role("button", name="Go on from here").click()
    expect(lonely.locator("#status")).to_contain_text("24 tokens in")
    assert lonely.locator("#output").text_content() == PROMPT + whole


@browser_only
def test_a_task_that_was_lost_cannot_be_gone_on_with(lonely: Any) -> None:
    body = f"data: {json.dumps(CHUNKS[0])}\n\n"
    lonely.route("**/v1/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    lonely.get_by_role("radio", name="Answer").check(force=True)
    lonely.get_by_role("button", name="Generate").click()
    expect(lonely.locator("#output .wrong")).to_contain_text("The connection to the server was lost")
    expect(lonely.locator(".go-on")).to_have_count(0)


@browser_only
def test_the_text_is_copied_whole(page: Any) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    slide(page, "max_tokens", 24)
    text = generate(page)
    page.get_by_role("button", name="Copy text").click()
    assert page.evaluate("() => navigator.clipboard.readText()") == text
    page.locator("#output").select_text()
    assert page.evaluate("() => getSelection().toString()").split() == text.split()
