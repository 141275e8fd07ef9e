"""The page in a real browser, over a real Ray Serve: what a person sees, types and cancels."""

import json
import shutil
import threading
from types import SimpleNamespace

import httpx
import pytest
import scripted
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from serving_apps import FIRST, PASSAGES, REST, deploy, free_port, hanging, serving, small_config
from waiting import wait_until

from steper_ray.config import ReasoningConfig, SamplingConfig, ServeConfig
from steper_ray.corpora import open_corpus
from steper_ray.serving.api import Limits
from steper_ray.serving.deployments import bind
from steper_ray.serving.engine import ReasonEngine
from steper_ray.serving.plan import make_plan
from steper_ray.serving.web import WebSettings, make_app
from steper_ray.serving.wire import About

pytestmark = pytest.mark.chromium

TOKEN = "a-token-for-tests"
PHONE = 360
#: Notes after every change: how many steps and passages, the last sentence's length, whether the answer is shown.
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const last = [...document.querySelectorAll(".sentence")].at(-1);
  window.seen.push([
    document.querySelectorAll(".step").length,
    document.querySelectorAll(".passage").length,
    last ? last.textContent.length : 0,
    !document.getElementById("answer").hidden,
  ]);
}).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
"""
#: WCAG's contrast of two colours that the style sheet names.
CONTRAST = """
const light = (name) => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  const [r, g, b] = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const [a, b] = [light(arguments[0]), light(arguments[1])];
return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""


@pytest.fixture(scope="module")
def service(ray_cluster, tmp_path_factory):
    """`url` of the real engine's page, `hanging` of the one that never ends, with its engine's `handle`."""
    config = small_config(tmp_path_factory.mktemp("run"))
    with serving() as url:
        deploy(bind(make_plan(config)))
        handle = deploy(hanging(config), "hanging")
        question = next(iter(open_corpus(config.corpus).questions())).text
        yield SimpleNamespace(url=f"{url}/", hanging=f"{url}/hanging/", handle=handle, question=question)


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium):
    yield Page(chromium)
    complaints = [entry["message"] for entry in chromium.get_log("browser")]
    # A refused request is in the browser's log whatever the page does with it.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


class Page:
    """What a person does with the page, and what he sees."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, width=1200, dark=False):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get_log("performance")
        self.driver.get(url)

    def until(self, condition):
        return WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: condition())

    def introduced(self):
        self.until(lambda: self.all("#example-list button"))

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        """As they are, not as the style sheet writes them."""
        return [element.get_property("textContent") for element in self.all(selector)]

    def shown(self, selector):
        return self.one(selector).is_displayed()

    def ask(self, text):
        self.one("#question").clear()
        self.one("#question").send_keys(text, Keys.ENTER)

    def problem(self):
        self.until(lambda: self.shown("#problem"))
        return self.one("#problem").text

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def scrolls_sideways(self):
        return self.js("return document.documentElement.scrollWidth > innerWidth")


def test_an_answer_unfolds_step_by_step_with_its_passages(service, page):
    page.open(service.url)
    page.introduced()
    page.js(WATCH)
    page.ask(service.question)
    page.until(lambda: page.shown("#answer"))
    told = httpx.post(f"{service.url}v1/reason", json={"question": service.question}, timeout=60).json()
    steps = told["steps"]

    assert page.texts(".query q") == [step["query"] for step in steps]
    assert page.texts(".sentence") == [step["reasoning"] for step in steps]
    found = [passage for step in steps for passage in step["passages"]]
    assert page.texts(".passage .title") == [passage["title"] for passage in found]
    assert page.texts(".passage .text") == [passage["text"] for passage in found]
    assert page.texts(".passage .score b") == [f"{passage['score']:.1f}" for passage in found]
    assert all("searched" in text and "wrote" in text for text in page.texts(".step .timing"))
    assert page.one("#answer-text").text == told["answer"]
    begin = "Answered after" if told["stop_reason"] == "answered" else "Not settled after"
    assert page.one("#stop").text.startswith(f"{begin} {len(steps)} step")
    assert told["answer"] in page.texts("#status")[0]  # read out too
    assert not page.shown("#cancel")

    seen = page.js("return window.seen")
    assert {count for count, *_ in seen} == set(range(len(steps) + 1))
    assert [1, len(steps[0]["passages"]), 0, False] in seen  # the passages stand before a word is written
    growing = [length for count, _, length, _ in seen if count == 1]
    growing = growing[
        : growing.index(max(growing))
    ]  # what follows the sentence is cut off when the step is done
    assert len(set(growing)) > 3
    assert growing == sorted(growing)


def test_the_page_asks_nothing_of_other_servers(service, page):
    page.open(service.url)
    page.introduced()
    page.all("#example-list button")[0].click()
    page.until(lambda: page.shown("#answer"))
    log = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    sent = [
        entry["params"]["request"]["url"] for entry in log if entry["method"] == "Network.requestWillBeSent"
    ]
    assert f"{service.url}v1/reason" in sent
    assert [url for url in sent if not url.startswith(service.url)] == []


def test_the_page_works_with_the_keyboard_alone(service, page):
    page.open(service.url)
    page.introduced()
    page.all("#example-list button")[1].send_keys(Keys.ENTER)
    page.until(lambda: page.shown("#answer"))
    assert page.js("return document.activeElement.id") == "asked"
    passage = page.all(".passage button")[0]
    passage.send_keys(Keys.SPACE)
    assert passage.get_attribute("aria-expanded") == "true"
    page.one("#question").send_keys("one", Keys.SHIFT, Keys.ENTER)
    assert page.one("#question").get_property("value").endswith("one\n")


def test_a_question_that_cannot_be_asked_is_told_so(service, page):
    page.open(service.url)
    page.introduced()
    page.ask("   ")
    assert page.problem() == "Ask a question first."
    page.js("document.getElementById('question').value = 'x'.repeat(50000)")
    page.one("#submit").click()
    page.until(lambda: "50,000 characters" in page.problem())
    assert "4,000 characters at most" in page.problem()
    assert page.one("#question").get_attribute("aria-invalid") == "true"
    assert not page.shown("#result")


def test_an_error_of_the_server_is_shown_and_the_next_question_clears_it(service, page):
    page.open(service.url)
    page.introduced()
    page.js("document.querySelector('#max-steps option:checked').value = 99")
    page.ask(service.question)
    assert page.problem().startswith("max_steps: must be")
    Select(page.one("#max-steps")).select_by_index(0)
    page.ask(service.question)
    page.until(lambda: page.shown("#answer"))
    assert not page.shown("#problem")
    assert len(page.all(".step")) == 1


@pytest.mark.parametrize("way", ["button", "escape"])
def test_cancelling_keeps_what_was_found_and_aborts_the_engine(service, page, way):
    before = service.handle.stats.remote().result(timeout_s=60).aborted
    page.open(service.hanging)
    page.introduced()
    page.ask("Who shot Alba?")
    page.until(lambda: page.texts(".sentence") == [FIRST, REST])
    assert page.shown("#cancel")
    assert not page.one("#submit").is_enabled()
    if way == "button":
        page.one("#cancel").click()
    else:
        page.one("#question").send_keys(Keys.ESCAPE)
    assert page.problem() == "Cancelled."
    assert page.texts(".sentence") == [FIRST, REST]
    assert page.one("#submit").is_enabled()
    assert not page.shown("#cancel")
    page.until(lambda: service.handle.stats.remote().result(timeout_s=60).aborted == before + 1)


def test_a_phone_never_scrolls_sideways(service, page):
    page.open(service.url, width=PHONE)
    page.introduced()
    assert page.js("return innerWidth") == PHONE
    assert not page.scrolls_sideways()
    page.ask(f"{service.question} {'Long' * 100}")
    page.until(lambda: page.shown("#answer"))
    assert not page.scrolls_sideways()
    for button in page.all(".passage button"):
        assert button.size["width"] <= PHONE


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_in_dark(service, page, dark):
    page.open(service.url, dark=dark)
    luminance = sum(
        int(part)
        for part in page.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")[:3]
    )
    assert (luminance < 3 * 128) == dark
    pairs = [(ink, ground) for ink in ("--ink", "--soft", "--accent") for ground in ("--paper", "--card")]
    pairs += [("--accent-ink", "--accent"), ("--bad", "--bad-wash"), ("--ink", "--mark")]
    weak = {pair: page.js(CONTRAST, *pair) for pair in pairs}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}


# ---- behind a token


@pytest.fixture
def guarded():
    """A page behind a token, on a plain HTTP server over scripted parts."""
    replies = [f"{FIRST} So the answer is: Bo.", "So the answer is: Bo."]
    engine = ReasonEngine(
        scripted.KeywordRetriever(PASSAGES),
        {"scripted": scripted.ScriptedGenerator(replies)},
        ReasoningConfig(),
        SamplingConfig(),
        ServeConfig(),
    )
    about = About(
        model="scripted",
        models=["scripted"],
        framework="ircot",
        unit="sentence",
        max_steps=5,
        max_question_chars=99,
        passages=2,
    )
    settings = WebSettings(Limits(5, 99), about, ("Who shot Alba?",), 60.0, TOKEN, SamplingConfig())
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(make_app(engine, settings), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the server", seconds=60, in_vain=lambda: not thread.is_alive())
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(timeout=60)


def test_the_page_asks_for_a_token_where_one_is_set_and_works_with_it(guarded, page):
    page.open(guarded)
    assert "asks for an access token" in page.problem()
    assert page.shown("#token")
    page.one("#token").send_keys("wrong", Keys.TAB)
    page.until(lambda: "not the server's" in page.problem())
    page.one("#token").clear()
    page.one("#token").send_keys(TOKEN, Keys.TAB)
    page.introduced()
    assert not page.shown("#problem")
    page.ask("Who shot Alba?")
    page.until(lambda: page.shown("#answer"))
    assert page.one("#answer-text").text == "Bo"
