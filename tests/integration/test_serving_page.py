"""The page in a real browser, over a real Ray Serve: what a person sees, types and cancels."""

import json
from types import SimpleNamespace

import httpx
import pytest
from page_driver import PHONE
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from serving_apps import FIRST, REST, deploy, hanging, serving, small_config

from steper_ray.corpora import open_corpus
from steper_ray.serving.deployments import bind
from steper_ray.serving.plan import make_plan

pytestmark = pytest.mark.chromium


#: Notes after every change: how many steps and passages, the last sentence's length, whether the answer is shown.
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const last = [...document.querySelectorAll(".sentence")].at(-1);
  window.seen.push([
    document.querySelectorAll(".step").length,
    document.querySelectorAll(".passage").length,
    last ? last.textContent.length : 0,
    document.querySelector(".answer:not([hidden])") !== null,
  ]);
}).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
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


def test_an_answer_unfolds_step_by_step_with_its_passages(service, page):
    page.open(service.url)
    page.introduced()
    page.js(WATCH)
    page.ask(service.question)
    page.until(lambda: page.shown(".answer"))
    told = httpx.post(f"{service.url}v1/reason", json={"question": service.question}, timeout=60).json()
    steps = told["steps"]

    assert page.texts(".query q") == [step["query"] for step in steps]
    assert page.texts(".sentence") == [step["reasoning"] for step in steps]
    found = [passage for step in steps for passage in step["passages"]]
    assert page.texts(".passage .title") == [passage["title"] for passage in found]
    assert page.texts(".passage .text") == [passage["text"] for passage in found]
    assert page.texts(".passage .score b") == [f"{passage['score']:.1f}" for passage in found]
    assert all("searched" in text and "wrote" in text for text in page.texts(".step .timing"))
    assert page.one(".answer-text").text == told["answer"]
    begin = "Not settled after" if told["stop_reason"] == "step_limit" else "Answered after"
    assert page.one(".stop").text.startswith(f"{begin} {len(steps)} step")
    assert told["answer"] in page.said()[-1]  # read out too
    assert not page.shown("#cancel")

    seen = page.js("return window.seen")
    assert {count for count, *_ in seen} == set(range(len(steps) + 1))
    assert [1, len(steps[0]["passages"]), 0, False] in seen  # the passages stand before a word is written
    growing = [length for count, _, length, _ in seen if count == 1]
    # In how many parts it comes depends on the engine's speed; test_serving_gathering.py has a clock for that.
    assert growing == sorted(growing)


def test_the_page_asks_nothing_of_other_servers(service, page):
    page.open(service.url)
    page.introduced()
    page.all("#example-list button")[0].click()
    page.until(lambda: page.shown(".answer"))
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
    page.until(lambda: page.shown(".answer"))
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
    page.until(lambda: page.shown(".answer"))
    assert page.problems() == []
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
    page.until(lambda: page.shown(".answer"))
    assert not page.scrolls_sideways()
    for button in page.all(".passage button"):
        assert button.size["width"] <= PHONE
