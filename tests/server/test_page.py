"""The page at /, in a real browser, with replies of the bundled pair or scripted ones."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from page_server import PageServer

import speccascade_local as sc
from speccascade_local.server.app import PAGE
from speccascade_local.server.http.policy import Policy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="no Chromium, or no playwright to drive it: apt install chromium, pip install playwright",
)
ORIGINS = {"accepted", "matched", "corrected", "bonus", "expert"}
QUESTION = "Who is Buzz Aldrin?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def runtime() -> Iterator[Any]:
    with sc.load() as loaded:
        loaded.profile()
        yield loaded


@pytest.fixture
def server(runtime: Any) -> Iterator[PageServer]:
    served = PageServer(runtime)
    yield served
    served.close()


@pytest.fixture
def page(browser: Any, server: PageServer) -> Iterator[Any]:
    """The loaded page. Console messages and requests to other hosts fail the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    complaints, fetched = [], []
    opened.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: fetched.append(request.url))
    opened.goto(server.url)
    opened.wait_for_selector("#health.there")
    yield opened
    expected = re.compile("Failed to load resource")  # the browser's own message about an error status or a stopped server
    assert [text for text in complaints if not expected.search(text)] == []
    assert {url for url in fetched if not url.startswith(server.url + "/")} == set()
    context.close()


def turn_to(page: Any, name: str, value: str) -> None:
    """Set a slider or a field as a user does."""
    page.evaluate(
        """([name, value]) => {
            const field = document.getElementById(name);
            field.value = value;
            for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind));
        }""",
        [name, value],
    )


def ask(page: Any, question: str = QUESTION) -> None:
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector("#send:not([hidden])")


def block(*tokens: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    text = "".join(token["text"] for token in tokens)
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], "speccascade": {"tokens": list(tokens)}}


@pytest.mark.parametrize("name", [path.name for path in PAGE.iterdir()])
def test_page_files_load_nothing_from_elsewhere_and_build_no_markup(name):
    text = (PAGE / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "//" not in re.sub(r"^\s*//.*$| // .*$", "", text, flags=re.MULTILINE).replace("/\\r?\\n\\r?\\n/", "")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage|sessionStorage|document\.cookie", text
    )
    assert not re.search(r"<style|<script(?! type=\"module\" src=\"/static/app.js\")|\son\w+=|\sstyle=", text), (
        "the content security policy allows all of it"
    )


@pytest.mark.slow
@needs_browser
def test_an_answer_streams_in_and_every_token_tells_who_wrote_it(page, server, runtime):
    server.pause_s = 0.05
    page.click("summary")
    page.select_option("#block-size", "4")  # with automatic lengths this small pair hardly drafts
    page.fill("#seed", "8")
    turn_to(page, "temperature", "1")
    page.fill("#question", QUESTION)
    page.click("#send")
    page.wait_for_selector(".answer.writing .token")
    early = page.locator(".tokens .token").count()
    page.wait_for_selector("#send:not([hidden])")
    spans = page.eval_on_selector_all(".tokens .token", "spans => spans.map(span => [span.className, span.textContent])")
    assert 0 < early < len(spans)
    assert {name for names, _ in spans for name in names.split()} <= ORIGINS | {"token"}
    assert all(len(ORIGINS & set(names.split())) == 1 for names, _ in spans)
    asked = server.requests[0]
    settings = {name: asked[name] for name in ("temperature", "max_tokens", "seed")} | {"block_size": asked["speccascade"]["block_size"]}
    server.close()  # the engine releases the runtime
    reply = runtime.chat(asked["messages"], rule=asked["speccascade"]["rule"], logprobs=5, model_logprobs=True, **settings)
    assert [(f"token {token.origin}", token.text) for token in reply.tokens] == [tuple(each) for each in spans]
    assert page.locator(".tokens .dropped").all_text_contents() == [token.dropped for token in reply.tokens if token.dropped]
    assert {"accepted", "corrected", "bonus"} <= set(reply.origins)
    figures = page.locator(".figures").inner_text().split("\n")
    assert figures[figures.index("tokens") + 1] == str(reply.stats.tokens)
    assert figures[figures.index("expert calls") + 1] == str(reply.stats.expert_calls)


@pytest.mark.slow
@needs_browser
def test_pointing_at_a_token_shows_both_models_the_decision_and_the_distance(page, server):
    top = {"expert": [["Edwin", -0.5], ["Buzz", -1.0]], "drafter": [["Buzz", -0.1]]}
    token = {"text": "Edwin", "origin": "corrected", "dropped": "Buzz", "tv": 0.25, "expert_logprob": -0.5, "top": top}
    server.scripted.append([block(token, finish="stop")])
    ask(page)
    page.hover(".tokens .token")
    card = page.locator("#inspector").inner_text()
    for words in ("The draft “Buzz” did not pass the rule token_v3:0.8", "TV 0.25", "60.7 %", "36.8 %", "90.5 %"):
        assert words in card.replace("\xa0", " ")
    assert page.locator("#inspector .chosen").all_inner_texts() == ["Edwin\n60.7\xa0%"]
    page.keyboard.press("Escape")
    assert page.locator("#inspector").is_hidden()


@pytest.mark.slow
@needs_browser
def test_dropped_drafts_can_be_hidden(page, server):
    server.scripted.append([block({"text": "a", "origin": "corrected", "dropped": "b"}, finish="stop")])
    ask(page)
    assert page.locator(".tokens .dropped").is_visible()
    page.uncheck("#show-dropped")
    assert page.locator(".tokens .dropped").is_hidden()


@pytest.mark.slow
@needs_browser
def test_the_page_works_with_the_keyboard_alone(page, server):
    server.scripted.append([block({"text": "one", "origin": "accepted", "tv": 0.0}, {"text": " two", "origin": "bonus"}, finish="stop")])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector("#send:not([hidden])")
    page.locator("#said", has_text="Answer: one two").wait_for(state="attached")
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.className") == "tokens":
            break
    page.wait_for_selector(".token.current")
    page.keyboard.press("ArrowRight")
    assert page.locator(".token.current").inner_text().strip() == "two"
    assert "bonus" in page.locator("#said").inner_text()
    assert page.locator("#inspector").is_visible()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is visible"


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_ends_the_reply_and_the_request(page, server, how):
    server.pause_s = 0.1
    page.fill("#question", QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer.writing .token")
    page.click("#stop") if how == "button" else page.keyboard.press("Escape")
    page.wait_for_selector("#send:not([hidden])")
    assert page.locator(".trouble").inner_text() == "Stopped."
    said = page.locator(".tokens").inner_text()
    page.wait_for_timeout(400)
    assert page.locator(".tokens").inner_text() == said
    assert server.left == 1
    server.pause_s = 0
    ask(page, "And who is he?")
    assert [each["role"] for each in server.requests[1]["messages"]] == ["user", "assistant", "user"]


@pytest.mark.slow
@needs_browser
def test_side_by_side_compares_three_ways_with_the_expert(page, server):
    page.check("#side-by-side")
    ask(page)
    assert [body["speccascade"]["rule"] for body in server.requests] == ["expert", "strict", "token_v3:0.8"]
    assert len({json.dumps(body["messages"]) for body in server.requests}) == 1
    assert not any(body["speccascade"]["model_logprobs"] for body in server.requests), "timed replies record nothing else"
    assert page.locator(".answer h3").all_text_contents() == ["Expert alone", "Speculative, strict", "Cascade, token_v3:0.8"]
    assert page.locator(".answer").first.locator(".token:not(.expert)").count() == 0
    figures = page.locator(".figures").all_inner_texts()
    assert "speed-up\n1.00 ×" in figures[0]
    assert all(re.search(r"speed-up\n[0-9.]+ ×", each) for each in figures)
    assert all("expert calls" in each and "tokens/s" in each for each in figures)


@pytest.mark.slow
@needs_browser
def test_the_dial_has_the_range_of_its_rule_and_changes_the_request(page, server):
    def dial() -> list[str]:
        return page.eval_on_selector("#dial", "dial => [dial.min, dial.max, dial.value]")

    assert dial() == ["-1", "1", "0.8"], "the pair's own rule"
    page.select_option("#rule", "chow")
    assert dial() == ["0", "1", "0.2"]
    turn_to(page, "dial", "0.55")
    turn_to(page, "temperature", "0")
    ask(page)
    page.select_option("#rule", "opt")
    turn_to(page, "dial-number", "7")
    assert dial() == ["-2", "7", "7"], "an open range takes any number"
    ask(page)
    page.select_option("#rule", "strict")
    assert page.locator("#dial-setting").is_hidden()
    ask(page)
    assert [body["speccascade"]["rule"] for body in server.requests] == ["chow:0.55", "opt:7", "strict"]
    assert server.requests[0]["temperature"] == 0


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("own", "shown", "asked"),
    [
        ("budget:0.02,diff", "budget", "budget:0.3,diff"),
        ("token_v3:0.3+strict_first:8", "token_v3", "token_v3:0.3+strict_first:8"),
        ("my_rules:Digits(0.3)", "", None),
        ("strict", "strict", "strict"),
    ],
)
def test_a_rule_of_the_pair_is_kept_as_it_is_written(page, server, own, shown, asked):
    server.pairs = [{"name": "demo", "rule": own, "drafter": "a", "expert": "b"}]
    page.reload()
    page.wait_for_selector("#health.there")
    assert page.input_value("#rule") == shown
    if shown == "budget":
        turn_to(page, "dial", "0.3")
    ask(page)
    assert server.requests[0]["speccascade"].get("rule") == asked
    assert page.locator(".answer h3").inner_text() == f"Cascade, {asked or own}"


@pytest.mark.slow
@needs_browser
def test_a_live_dial_asks_the_last_question_again(page, server):
    ask(page)
    page.check("#live")
    turn_to(page, "dial", "0.1")
    page.locator(".answer h3", has_text="Cascade, token_v3:0.1").wait_for()
    page.wait_for_selector("#send:not([hidden])")
    assert len(server.requests) == 2
    assert server.requests[1]["messages"] == server.requests[0]["messages"]
    assert page.locator(".turn").count() == 1


@pytest.mark.slow
@needs_browser
def test_system_prompt_limits_and_a_new_conversation(page, server):
    page.click("summary")
    page.fill("#system", "Be brief.")
    page.fill("#max-tokens", "5")
    page.fill("#seed", "11")
    page.select_option("#block-size", "4")
    ask(page)
    asked = server.requests[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (asked["max_tokens"], asked["seed"], asked["speccascade"]["block_size"]) == (5, 11, 4)
    assert "Cut off" in page.locator(".trouble").inner_text()
    page.click("#new")
    assert page.locator(".turn").count() == 0
    ask(page)
    assert [each["role"] for each in server.requests[1]["messages"]] == ["system", "user"]
    assert server.requests[1]["prompt_cache_key"] != asked["prompt_cache_key"]


HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script></div>&amp;"


@pytest.mark.slow
@needs_browser
def test_no_text_becomes_markup(browser, runtime):
    served = PageServer(runtime)
    served.pairs = [{"name": HOSTILE, "rule": "token_v3:0.8", "drafter": HOSTILE, "expert": HOSTILE}]
    token = {"text": HOSTILE, "origin": HOSTILE, "dropped": HOSTILE, "tv": 0.5, "top": {"expert": [[HOSTILE, -1.0]], "drafter": []}}
    served.scripted = [[block(token), {"error": {"message": HOSTILE}}]]
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.url)
    page.wait_for_selector("#health.there")
    ask(page, HOSTILE)
    page.hover(".tokens .token")
    assert HOSTILE in page.locator("#inspector strong").text_content()
    page.keyboard.press("Escape")
    page.locator(".as-table summary").click()
    assert HOSTILE in page.locator(".as-table td").first.text_content()
    assert page.locator(".tokens .token").text_content() == HOSTILE
    assert page.locator(".asked").text_content() == HOSTILE
    assert page.locator("#pair option").text_content() == HOSTILE
    assert HOSTILE in page.locator("#notice").text_content()
    assert page.locator("img, main script").count() == 0
    assert page.title() == "speccascade"
    context.close()
    served.close()


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "Change it, then ask again."), (401, "API key"), (429, "Ask again in 3 s."), (500, "see the server’s output")],
)
def test_refusals_are_shown_with_advice(page, server, status, advice):
    server.scripted.append((status, "it cannot be done"))
    ask(page)
    assert page.locator("#notice").inner_text().startswith("it cannot be done.")
    assert advice in page.locator("#notice").inner_text()
    assert page.locator("#key").is_visible() == (status == 401)
    ask(page)
    assert page.locator("#notice").is_hidden(), "the next question works"


@pytest.mark.slow
@needs_browser
def test_the_key_is_sent_to_the_server_only(browser, runtime):
    key = "k" * 32
    served = PageServer(runtime, policy=Policy(api_keys=(key,)))
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(served.url)
    page.locator("#health", has_text="key needed").wait_for()
    assert "API key in the settings" in page.locator("#notice").inner_text()
    page.fill("#key", key)
    page.keyboard.press("Tab")
    page.wait_for_selector("#health.there")
    assert page.locator("#notice").is_hidden()
    ask(page)
    assert page.locator(".tokens .token").count() > 5
    page.get_by_role("button", name="Copy as curl").click()
    page.locator(".actions button:nth-child(3)", has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "$SPECCASCADE_API_KEY" in copied
    assert key not in copied
    context.close()
    served.close()


@pytest.mark.slow
@needs_browser
def test_an_interrupted_reply_stays_visible(page, server):
    server.scripted.append([block({"text": "half", "origin": "accepted"}), {"error": {"message": "out of memory"}}])
    ask(page)
    assert page.locator(".tokens").inner_text() == "half"
    assert page.locator("#notice").inner_text().startswith("out of memory. Ask again")
    assert page.locator("#health").inner_text() == "ready", "the server is still alive"


@pytest.mark.slow
@needs_browser
def test_a_server_that_goes_away_and_comes_back(page, server):
    server.close()
    ask(page)
    assert "The server does not answer. Check whether “speccascade serve” is still running" in page.locator("#notice").inner_text()
    assert page.locator("#health").inner_text() == "no server"
    server.come_back()
    page.wait_for_selector("#health.there", timeout=30_000)
    assert page.locator("#notice").is_hidden()
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_selector(".tokens .token")


@pytest.mark.slow
@needs_browser
def test_copied_snippets_send_the_same_request(page, server):
    question = 'It\'s "so" – $HOME `ls` \\n'
    ask(page, question)
    sent = server.requests[0]
    page.get_by_role("button", name="Copy as curl").click()
    page.locator(".actions button:nth-child(3)", has_text="Copied").wait_for()
    words = shlex.split(page.evaluate("navigator.clipboard.readText()").replace("\\\n", " "))
    assert words[:3] == ["curl", "-N", f"{server.url}/v1/chat/completions"]
    assert json.loads(words[words.index("-d") + 1]) == sent
    page.get_by_role("button", name="Copy as Python").click()
    page.locator(".actions button:nth-child(4)", has_text="Copied").wait_for()
    tree = ast.parse(page.evaluate("navigator.clipboard.readText()"))
    create = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("create"))
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in create.keywords}
    assert given.pop("extra_body") == {"speccascade": sent["speccascade"]}
    assert given == {name: value for name, value in sent.items() if name != "speccascade"}


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const over = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => rgb.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const found = [];
    for (const each of document.querySelectorAll("body *")) {
        const own = [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!own || !each.checkVisibility({ visibilityProperty: true }) || each.closest(".only-read, noscript")) continue;
        const grounds = [];
        for (let at = each; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
        const [low, high] = [light(over(grounds)), light(over([...grounds, getComputedStyle(each).color]))].sort((a, b) => a - b);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) found.push([each.tagName, each.className, each.textContent.slice(0, 30), ratio]);
    }
    return found;
}"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_contrast_and_every_control_a_name(page, server, theme):
    page.emulate_media(color_scheme=theme)
    server.scripted.append(
        [block(*({"text": name, "origin": name, "dropped": "no", "tv": 0.1} for name in sorted(ORIGINS)), finish="stop")]
    )
    ask(page)
    page.hover(".tokens .corrected")
    server.scripted.append((500, "broken"))
    ask(page)
    assert page.evaluate(CONTRAST) == []
    nameless = """() => [...document.querySelectorAll("button, select, textarea, input")]
        .filter(each => !(each.labels?.length || each.textContent.trim() || each.ariaLabel || each.getAttribute("aria-labelledby")))
        .map(each => each.id)"""
    assert page.evaluate(nameless) == []


@pytest.mark.slow
@needs_browser
def test_the_switch_between_light_and_dark(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != before
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.click("#theme")
    assert page.evaluate(ground) == before


@pytest.mark.slow
@needs_browser
def test_on_a_phone_nothing_overflows_and_the_settings_open_and_close(page, server):
    page.set_viewport_size({"width": 390, "height": 844})
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#settings").is_hidden()
    page.click("#open-settings")
    assert page.locator("#rule").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden()
    assert page.evaluate("document.activeElement.id") == "open-settings"
    page.locator(".tokens .token").first.click()
    box = page.locator("#inspector").bounding_box()
    assert box is not None
    assert (box["x"], box["width"]) == (0, 390)
