"""The page in a real browser, over the real endpoint on scripted parts: what it makes of an answer, of two, of none."""

import pytest
from local_endpoint import CHAIN, OTHER, QUESTION, LocalEngine, replies
from page_driver import PHONE, answered
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from steper_ray.core.answers import comparable
from steper_ray.core.errors import GenerationError
from steper_ray.serving import asking
from steper_ray.serving.asking import OverloadedError

pytestmark = pytest.mark.chromium

TOKEN = "a-token-for-tests"
#: WCAG's contrast of every text that is shown with what lies behind it: what is below 4.5.
WEAK = """
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
const parts = (color) => color.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = parts(getComputedStyle(at).backgroundColor);
    if (color.length < 4 || color[3] === 1) return color;
  }
};
const looked = [...document.querySelectorAll("body *")].filter((element) =>
  element.checkVisibility() && !element.disabled && !element.closest(".visually-hidden, option")
  && (getComputedStyle(element, "::before").content.includes('"')
    || [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())));
const ratio = (element) => {
  const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
};
return [looked.length, looked.filter((element) => ratio(element) < 4.5)
  .map((element) => `${element.className || element.tagName}: ${ratio(element).toFixed(2)}`)];
"""
#: How far the comma between two sentences' numbers stands from the first of them.
GAP = """
const [uses] = [...document.querySelectorAll(".uses")].filter((uses) => uses.querySelectorAll(".use").length > 1);
const box = (node) => {
  const range = document.createRange();
  range.selectNodeContents(node);
  return range.getBoundingClientRect();
};
const first = uses.querySelector(".use");
return box(first.nextSibling).left - box(first.firstChild).right;
"""
#: Of each selector whether what it names is set off by more than a colour: by an edge, or a line below its words.
EDGED = """
return Object.fromEntries(arguments[0].map((selector) => {
  const [name, pseudo] = selector.split("::");
  const found = [...document.querySelectorAll(name)].filter((element) => element.checkVisibility());
  const edged = (element) => {
    const style = getComputedStyle(element, pseudo && `::${pseudo}`);
    return [[style.borderBottomStyle, style.borderBottomWidth], [style.outlineStyle, style.outlineWidth]]
      .some(([kind, width]) => kind !== "none" && width !== "0px") || style.textDecorationLine.includes("underline");
  };
  return [selector, found.length > 0 && found.every(edged)];
}));
"""
#: Of each selector whether what is drawn by its background stands out from the page.
DRAWN = """
return Object.fromEntries(arguments[0].map((selector) => {
  const [name, pseudo] = selector.split("::");
  const drawn = getComputedStyle(document.querySelector(name), `::${pseudo}`).backgroundColor;
  return [selector, drawn !== getComputedStyle(document.body).backgroundColor];
}));
"""


def compare(page):
    page.introduced()
    Select(page.one("#other")).select_by_value(OTHER)
    page.ask(QUESTION)


def rows(page):
    """Model and what is said of it, without the time."""
    cells = [row.find_elements("css selector", "th, td") for row in page.all("#compared tr")]
    return [[cell.text for cell in row][:4] for row in cells]


# ---- sentences and their passages


def test_a_sentence_leads_to_the_passage_that_grounds_it_and_back(page_of):
    page = page_of(LocalEngine(replies()))
    page.introduced()
    page.ask(QUESTION)
    answered(page)
    assert page.texts(".chain .said") == CHAIN
    assert page.texts(".source") == ["1 Alba", "2 Bo", "2 Bo"]
    assert [mark.accessible_name for mark in page.all(".cite")] == [
        "Passage 1: Alba", "Passage 2: Bo", "Passage 2: Bo",
    ]  # fmt: skip
    assert page.texts(".uses") == ["Grounds sentence 1", "Grounds sentences 2, 3"]
    assert page.js(GAP) < 1  # pixels: the comma stands at its number
    assert not page.shown(".unsaid")

    page.js("arguments[0].focus()", page.all(".source")[1])
    assert page.texts(".passage.lit .title") == ["Bo"]
    page.all(".source")[1].send_keys(Keys.ENTER)
    assert page.texts(".passage.lit") == []
    assert page.focused().text.startswith("2\nBo")
    assert page.focused().get_attribute("aria-expanded") == "true"
    page.all(".use")[2].send_keys(Keys.ENTER)
    assert page.focused() == page.all(".chain .said")[2]


def test_what_was_taken_back_is_shown_at_its_step_and_not_in_the_chain(page_of):
    doubted = "Bo was born in Ulm."
    engine = LocalEngine([f"{CHAIN[0]} And", f"{doubted} And", f"{CHAIN[1]} And", CHAIN[2]])
    engine.generator._doubted = [doubted]
    page = page_of(engine)
    page.introduced()
    page.ask(QUESTION)
    answered(page)
    assert page.texts(".chain .said") == CHAIN
    told = [note for note in page.all(".taken-back") if note.is_displayed()]
    assert [note.text for note in told] == [f"Not sure, taken back: {doubted}"]
    assert page.texts(".query q")[2] == doubted


def test_a_sentence_that_no_passage_holds_is_shown_as_such(page_of):
    made_up = ["The director of Alba is Zog.", "So nothing is known.", "So the answer is: Yew."]
    page = page_of(LocalEngine(made_up))
    page.introduced()
    page.ask(QUESTION)
    answered(page)
    assert page.texts(".step .unsaid:not([hidden])") == ["In no passage: “Zog”", "No passage says this"]
    assert page.texts(".chain .unsaid")[1] == "Has no name, number or answer to look up"
    assert page.texts(".source") == ["1 Alba"]


def test_a_chain_in_one_step_is_tied_sentence_by_sentence(page_of):
    engine = LocalEngine([" ".join(CHAIN)])
    page = page_of(engine)
    page.introduced()
    assert Select(page.one("#stop")).first_selected_option.text == "once sure"  # as the server is set
    Select(page.one("#unit")).select_by_value("chain")
    Select(page.one("#stop")).select_by_value("fixed")
    page.ask(f"{QUESTION} And what of Bo?")
    answered(page)
    assert page.texts(".sentence") == [" ".join(CHAIN)]  # marks are no part of the text
    assert page.texts(".chain .said") == CHAIN
    assert page.texts(".source") == ["1 Alba", "2 Bo", "2 Bo"]
    assert [(ask.unit, ask.stop) for ask in engine.asked] == [("chain", "fixed")]


def test_comments_in_a_silent_stream_are_passed_over(page_of, monkeypatch):
    monkeypatch.setattr(asking, "BEAT_SECONDS", 0.02)
    page = page_of(LocalEngine([CHAIN[0], "No full stop"], hang_at=1, request_timeout_s=2.0))
    page.introduced()
    page.ask(QUESTION)
    page.until(lambda: page.shown(".answer.degraded"))
    assert page.texts(".chain .said") == CHAIN[:1]


# ---- two models side by side


def test_two_models_answer_side_by_side_and_are_compared(page_of):
    engine = LocalEngine(replies())
    page = page_of(engine)
    compare(page)
    answered(page, 2)
    assert sorted(ask.model for ask in engine.asked) == [OTHER, "test"]
    assert page.texts(".run-model") == ["test", OTHER]
    assert page.texts(".answer-text") == ["Cem", "Dan"]
    assert [len(run.find_elements("css selector", ".step")) for run in page.all(".run")] == [3, 1]
    assert page.one("#verdict").text == "Different answers"
    assert [row[:3] for row in rows(page)] == [["test", "Cem", "3"], [OTHER, "Dan", "1"]]
    left, right = (run.rect for run in page.all(".run"))
    assert (left["y"], left["x"] < right["x"]) == (right["y"], True)
    page.until(lambda: page.said()[-1] == "Different answers")
    said = page.said()
    answers = {text.partition(".")[0] for text in said if ":" in text}
    assert answers == {f"{OTHER}: Answer: Dan", "test: Answer: Cem"}
    assert not [text for text in said if text.startswith("Step")]  # two at once would talk over each other

    page.press("#open-history")
    assert page.texts(".earlier-answer") == [f"test: Cem  ·  {OTHER}: Dan"]
    page.press(".earlier .open")
    assert page.texts(".run-model") == ["test", OTHER]
    assert page.one("#verdict").text == "Different answers"
    assert len(engine.asked) == 2


def test_a_model_is_not_offered_for_comparison_with_itself(page_of):
    page = page_of(LocalEngine(["So the answer is: Dan."]))
    page.introduced()
    assert [option.text for option in Select(page.one("#other")).options] == ["nothing", OTHER]
    Select(page.one("#model")).select_by_value(OTHER)
    assert [option.text for option in Select(page.one("#other")).options] == ["nothing", "test"]
    Select(page.one("#other")).select_by_value("test")
    page.ask(QUESTION)
    answered(page, 2)
    assert page.texts(".run-model") == [OTHER, "test"]
    assert page.one("#verdict").text == "Same answer"


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        ("the Café!", "Café", "Same answer"),
        ("A", "++", "Different answers"),
        ("A", '"a"', "Same answer"),
        ("कि", "की", "Different answers"),
        ("a ñandú", "ñandú", "Same answer"),
        ("año", "ño", "Different answers"),
    ],
)
def test_two_answers_are_compared_as_the_server_compares_them(page_of, left, right, verdict):
    assert (comparable(left) == comparable(right)) == (verdict == "Same answer")
    engine = LocalEngine([f"So the answer is: {left}."])
    engine.other._replies[0] = f"So the answer is: {right}."
    page = page_of(engine)
    compare(page)
    answered(page, 2)
    assert page.one("#verdict").text == verdict


def test_one_of_two_is_cancelled_alone_and_asked_again(page_of):
    engine = LocalEngine([replies()[0], CHAIN[1], *replies()], hang_at=1)
    page = page_of(engine)
    compare(page)
    page.until(lambda: engine.generator.prompts[1:] and rows(page)[1:] == [[OTHER, "Dan", "1", "22"]])
    page.until(lambda: page.one("#cancel").text == "Cancel")  # only one is under way
    page.press(".run-cancel")
    page.until(lambda: page.problems() == ["Cancelled."])
    assert page.one("#verdict").text == f"Only {OTHER} answered"
    assert rows(page) == [["test", "Cancelled."], [OTHER, "Dan", "1", "22"]]
    assert page.focused() == page.one(".again")
    page.press(".again")
    answered(page, 2)
    assert page.texts(".answer-text") == ["Cem", "Dan"]
    assert page.problems() == []


@pytest.mark.parametrize("dark", [False, True])
def test_two_models_stand_below_each_other_on_a_phone_and_all_text_stands_out(page_of, dark):
    page = page_of(
        LocalEngine(["The director of Alba is Zog.", GenerationError("no")]), width=PHONE, dark=dark
    )
    compare(page)
    answered(page, 2)
    page.until(
        lambda: page.one("#verdict").text == f"Only {OTHER} answered"
    )  # what a failure left is no answer
    left, right = (run.rect for run in page.all(".run"))
    assert (left["x"], left["y"] + left["height"] <= right["y"]) == (right["x"], True)
    assert not page.scrolls_sideways()
    page.press("#open-history")
    looked, weak = page.js(WEAK)
    assert looked > 40
    assert weak == []
    ground = page.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")[:3]
    assert (sum(map(int, ground)) < 3 * 128) == dark


@pytest.mark.parametrize("dark", [False, True])
def test_in_the_readers_own_colours_nothing_is_told_by_a_colour_alone(page_of, dark):
    page = page_of(LocalEngine([CHAIN[0], CHAIN[1][:15]], hang_at=1), dark=dark, forced=True)
    page.introduced()
    assert page.js("return matchMedia('(forced-colors: active)').matches")
    page.ask(QUESTION)
    page.until(lambda: page.texts(".sentence")[1:] == [CHAIN[1][:15]])
    page.js("arguments[0].focus()", page.one(".cite"))
    edged = ["mark", ".cite", ".said.lit", ".passage.lit", ".used .number", ".use"]
    assert page.js(EDGED, edged) == dict.fromkeys(edged, True)
    # What is under way or lit is told from what is not.
    ring = (
        "return [...document.querySelectorAll('.marker')].map((each) => getComputedStyle(each).outlineStyle)"
    )
    assert page.js(ring) == ["none", "solid"]
    assert page.js(EDGED, [".said:not(.lit)"]) == {".said:not(.lit)": False}
    drawn = [".step::before", ".step.writing .sentence::after"]
    assert page.js(DRAWN, drawn) == dict.fromkeys(drawn, True)
    page.press("#cancel")
    page.until(lambda: page.problems() == ["Cancelled."])
    assert page.js(EDGED, [".run-problem"]) == {".run-problem": True}

    page = page_of(
        LocalEngine(["The director of Alba is Zog.", GenerationError("no")]), dark=dark, forced=True
    )
    page.introduced()
    page.ask("   ")
    assert page.problem() == "Ask a question first."
    assert page.js("return getComputedStyle(document.getElementById('question')).borderStyle") == "dashed"
    page.ask(QUESTION)
    answered(page)
    edged = [".unsaid", ".answer.degraded .stop"]
    assert page.js(EDGED, edged) == dict.fromkeys(edged, True)


# ---- what goes wrong


def test_what_a_failure_left_is_shown_as_no_finished_answer(page_of):
    page = page_of(LocalEngine([replies()[0], GenerationError("no")]))
    page.introduced()
    page.ask(QUESTION)
    answered(page)
    assert page.one(".answer.degraded .stop").text == (
        "The model failed on the way: this is the last thought, not an answer."
    )
    assert page.one(".answer-text").text == CHAIN[0]


def test_a_server_with_too_much_to_do_says_when_to_ask_again(page_of):
    engine = LocalEngine(replies(), broken=OverloadedError())
    page = page_of(engine)
    page.introduced()
    page.ask(QUESTION)
    assert page.problem() == (
        "Too many questions are waiting; ask again in a moment. Try again in 2 seconds."
    )
    again = page.one(".again")
    assert (again.is_enabled(), again.text.rstrip(" 12s")) == (False, "Ask again in")
    engine.broken = None
    page.until(again.is_enabled)
    assert again.text == "Ask again"
    again.click()
    answered(page)
    assert page.problems() == []


def test_the_page_asks_for_a_token_where_one_is_set_and_works_with_it(page_of):
    page = page_of(LocalEngine(replies()), token=TOKEN)
    assert "asks for an access token" in page.problem()
    assert page.shown("#token")
    page.one("#token").send_keys("wrong", Keys.TAB)
    page.until(lambda: "not the server's" in page.problem())
    page.one("#token").clear()
    page.one("#token").send_keys(TOKEN, Keys.TAB)
    page.introduced()
    assert page.problems() == []
    page.ask(QUESTION)
    answered(page)
    assert page.one(".answer-text").text == "Cem"
    assert TOKEN not in page.js("return JSON.stringify(localStorage)")


def test_every_control_has_a_name_and_every_part_its_role(page_of, chromium):
    page = page_of(LocalEngine(replies()))
    compare(page)
    answered(page, 2)
    page.press("#open-history")
    tree = chromium.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n["ignored"]]
    assert ("dialog", "Earlier questions") in roles
    page.press("#close-history")
    tree = chromium.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n["ignored"]]
    controls = [(role, name) for role, name in roles if role in ("button", "combobox", "textbox", "link")]
    assert len(controls) > 15
    assert [control for control in controls if not control[1]] == []
    assert ("region", "test") in roles
    assert ("region", OTHER) in roles
    assert {"table", "rowheader", "columnheader", "log"} <= {role for role, _ in roles}
