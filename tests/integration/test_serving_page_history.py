"""The page in a real browser: what it keeps of earlier questions, and where a browser keeps nothing."""

import pytest
from local_endpoint import PASSAGES, QUESTION, LocalEngine, replies
from scripted import KeywordRetriever
from selenium.webdriver.common.keys import Keys

from steper_ray.core.errors import GenerationError
from steper_ray.schema import Passage

pytestmark = pytest.mark.chromium

NO_STORAGE = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError') }});"
FULL_STORAGE = """
const put = Storage.prototype.setItem;
Storage.prototype.setItem = function (key, value) {
  if (JSON.parse(value).length > 1) throw new DOMException("full", "QuotaExceededError");
  put.call(this, key, value);
};
"""


def ask(page, question):
    """Asks and waits for the end, when what is kept is kept."""
    page.until(lambda: page.texts("#max-steps option"))  # the page knows its server
    page.ask(question)
    page.until(lambda: page.one("#submit").is_enabled())


def test_an_earlier_question_is_shown_again_without_asking_and_can_be_forgotten(page_of):
    engine = LocalEngine(replies() * 2)
    page = page_of(engine)
    ask(page, QUESTION)
    ask(page, f"{QUESTION} Again?")
    page.driver.refresh()
    page.introduced()
    page.press("#open-history")
    assert page.texts(".earlier-question") == [f"{QUESTION} Again?", QUESTION]
    assert page.texts(".earlier-answer") == ["Cem", "Cem"]
    assert "in this browser, and nowhere else" in page.one("#history-note").text
    page.all(".earlier .open")[1].send_keys(Keys.ENTER)
    assert not page.shown("#history")
    assert page.focused().text == QUESTION
    assert page.one("#stored").text.startswith("Asked ")
    assert page.texts(".source") == ["1 Alba", "2 Bo", "2 Bo"]
    assert page.texts(".passage .text") == [passage.text for passage in PASSAGES]
    assert page.one(".answer-text").text == "Cem"
    assert len(engine.asked) == 2

    page.press("#open-history")
    page.all(".delete")[0].send_keys(Keys.ENTER)
    assert page.texts(".earlier-question") == [QUESTION]
    assert page.focused() == page.one(".delete")  # and not thrown out of the list
    page.press("#clear-history")
    assert page.shown("#history-empty")
    page.focused().send_keys(Keys.ESCAPE)
    assert not page.shown("#history")
    assert page.js("return localStorage.length") == 0


def test_the_last_thirty_are_kept_and_a_broken_store_is_passed_over(page_of):
    page = page_of(LocalEngine(replies() * 2))
    page.js("localStorage.setItem('steper-history:/', '{\"broken\"')")
    ask(page, QUESTION)
    fill = """
        const key = "steper-history:/", [entry] = JSON.parse(localStorage[key]);
        localStorage[key] = JSON.stringify(Array.from({ length: 30 }, (_, n) => ({ ...entry, id: `old ${n}` })));
    """
    page.js(fill)
    ask(page, f"{QUESTION} Again?")
    page.press("#open-history")
    assert page.texts(".earlier-question") == [f"{QUESTION} Again?", *[QUESTION] * 29]
    page.all(".earlier .open")[29].send_keys(Keys.ENTER)
    assert page.one(".answer-text").text == "Cem"


def test_markup_in_what_is_sent_and_kept_stays_text(page_of):
    hostile = "<img src=x onerror=alert(1)>"
    found = KeywordRetriever([Passage(hostile, f"Alba {hostile}", f"Alba {hostile} Cem")])
    page = page_of(LocalEngine([f"So the answer is: Cem {hostile}"], found))
    ask(page, f"Alba {hostile}")
    page.press("#open-history")
    page.press(".earlier .open")
    assert page.one(".passage .title").text == f"Alba {hostile}"
    assert page.one(".answer-text").text == f"Cem {hostile}"
    assert page.one("#asked").text == f"Alba {hostile}"
    assert page.all("img[onerror]") == []


def test_what_failed_is_not_kept(page_of):
    page = page_of(LocalEngine([GenerationError("no")]))
    ask(page, QUESTION)
    assert page.problem() == "The model could not answer this question"
    page.press("#open-history")
    assert page.shown("#history-empty")


@pytest.mark.parametrize(("storage", "kept"), [(NO_STORAGE, 2), (FULL_STORAGE, 1)])
def test_the_page_works_where_the_browser_keeps_nothing_or_little(page_of, chromium, storage, kept):
    added = chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": storage})
    try:
        page = page_of(LocalEngine(replies() * 2))
        ask(page, QUESTION)
        ask(page, f"{QUESTION} Again?")
        page.press("#open-history")
        assert len(page.all(".earlier")) == kept
        assert ("keeps nothing" in page.one("#history-note").text) == (storage is NO_STORAGE)
        page.all(".earlier .open")[-1].click()
        assert page.one(".answer-text").text == "Cem"
    finally:
        chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
        page.driver.refresh()
