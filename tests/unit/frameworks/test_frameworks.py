"""What one step is, and what it asks the retriever, in every framework."""

from random import Random

import pytest
from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig
from steper_ray.core.answers import extract_answer
from steper_ray.core.errors import DataError, SteperError
from steper_ray.frameworks import FRAMEWORKS, Fact, layout_for, layouts, rewrites
from steper_ray.prompts import PromptEncoder
from steper_ray.reasoning import Reasoner
from steper_ray.schema import Passage, Question

IRCOT, SELF_ASK, REACT = FRAMEWORKS["ircot"], FRAMEWORKS["self_ask"], FRAMEWORKS["react"]
#: Without the baselines that write the whole chain again in each step.
STEPWISE = {name: framework for name, framework in FRAMEWORKS.items() if not rewrites(framework)}
FACTS = (
    Fact("Who directed Alba?", "Bo", "The director of Alba is Bo."),
    Fact("Where was Bo born?", "Cem", "Bo was born in Cem."),
)


def test_ircot_asks_with_the_question_then_with_the_last_sentence_that_is_no_conclusion():
    assert IRCOT.next_query("Who?", ()) == "Who?"
    assert IRCOT.next_query("Who?", ("Bo was born.", "So it goes.")) == "Bo was born."
    assert IRCOT.next_query("Who?", ("Al met Bo. Bo left Cem.",)) == "Bo left Cem."
    assert IRCOT.next_query("Who?", ("So the answer is: x.",)) == "Who?"


def test_ircot_queries_lose_question_words():
    assert IRCOT.next_query("q", ("The man who is king rules Cem.",)) == "The man is king rules Cem."


def test_ircot_cuts_after_the_first_sentence():
    assert IRCOT.cut(" Al is  Bo. Cem is Di.") == ("Al is Bo.", True)


def test_self_ask_cuts_after_the_next_follow_up_question():
    text = "\nIntermediate answer: Bo\nFollow up: Where was Bo born?\nIntermediate answer: Cem"
    assert SELF_ASK.cut(text) == ("Intermediate answer: Bo\nFollow up: Where was Bo born?", True)


def test_self_ask_does_not_cut_inside_a_follow_up_question():
    assert SELF_ASK.cut("\nFollow up: Where was") == ("Follow up: Where was", False)


def test_self_ask_asks_with_the_open_follow_up_question():
    chain = ("Follow up: Who directed Alba?", "Intermediate answer: Bo\nFollow up: Where was Bo born?")
    assert SELF_ASK.next_query("q", chain) == "Where was Bo born?"
    assert SELF_ASK.next_query("q", ()) == "q"


def test_react_cuts_after_the_first_action_and_does_not_wait_for_its_line_to_end():
    text = "\nThought: Bo made it.\nAction: Search[Bo]"
    assert REACT.cut(text) == ("Thought: Bo made it.\nAction: Search[Bo]", True)
    assert REACT.cut(text[:-1]) == ("Thought: Bo made it.\nAction: Search[Bo]", False)
    assert REACT.cut(f"{text}, then\nThought: More.") == REACT.cut(text)


@pytest.mark.parametrize(
    ("text", "piece", "query"),
    [
        (
            "Thought 1: Who?\nAction 1: search[Bo]\nObservation 1: A.",
            "Thought: Who?\nAction: Search[Bo]",
            "Bo",
        ),
        ("thought: Who?\n\naction: Search [Bo]\n", "Thought: Who?\nAction: Search[Bo]", "Bo"),
        ("**Thought:** Who?\n**Action 2:** Search[Bo]", "Thought: Who?\nAction: Search[Bo]", "Bo"),
        ("Who? It\n is Al.\nSearch[Bo]", "Thought: Who? It is Al.\nAction: Search[Bo]", "Bo"),
        ("Thought: Who? Action: Search[Bo]", "Thought: Who?\nAction: Search[Bo]", "Bo"),
        ("Thought: Action:  Search[Bo]", "Action: Search[Bo]", "Bo"),
        ("Action:\nSearch[Bo]", "Action: Search[Bo]", "Bo"),
        ("Action: Search[Bo [of [A]] B] C]", "Action: Search[Bo [of [A]] B]", "Bo [of [A]] B"),
        ("Action: Search[Bo\nThought: Al.", "Action: Search[Bo]", "Bo"),
        ("Action: Search[Bo [of A\n", "Action: Search[Bo (of A]", "Bo (of A"),
        ("Action: Search[ Bo  and\tAl ]", "Action: Search[Bo and Al]", "Bo and Al"),
        ("Thought: Who?\nAction: Search[]\n", "Thought: Who?\nAction: Search[]", "Who?"),
        ("Thought: Who?\nAction: Lookup[Bo]\n", "Thought: Who?\nAction: Lookup[Bo]", "Who?"),
        ("Thought: Who?\nAction: Search\nBo", "Thought: Who?\nAction: Search", "Who?"),
        ("Thought: Who?\nAction: Finish[]", "Thought: Who?\nAction: Finish[]", "Who?"),
        ("Action: ]][\n", "Action: ]][", "asked"),
        ("Thought: Who?\nObservation: Al.\nAction: Search[Bo]", "Thought: Who?", "Who?"),
    ],
)
def test_react_reads_an_action_however_it_is_written_and_falls_back_on_the_thought(text, piece, query):
    assert REACT.cut(text) == (piece, True)
    assert REACT.cut(piece)[0] == piece
    assert REACT.next_query("asked", (piece,)) == query


@pytest.mark.parametrize("text", ["", "\n \n", "Observation: Al.", "Action:", "Thought:\nAction 1:"])
def test_a_react_step_that_says_nothing_is_empty(text):
    assert REACT.cut(text)[0] == REACT.clean(text) == ""


def test_react_asks_with_the_last_search_then_with_the_thought_of_a_step_without_one():
    searched = "Thought: Al.\nAction: Search[Bo]"
    assert REACT.next_query("q", ()) == "q"
    assert REACT.next_query("q", ("Thought: Who?\nAction: Search[Al]", searched)) == "Bo"
    assert REACT.next_query("q", (searched, "Thought: Cem is next.")) == "Cem is next."
    assert REACT.next_query("q", (f"{searched}\nThought: Cem\nAction: Search[Cem",)) == "Cem"


def test_a_whole_react_generation_ends_where_it_finishes_or_makes_an_observation_up():
    first = "Thought: Al.\nAction: Search[Bo]"
    steps = f"{first}\nThought: Bo.\nAction: Finish[Cem]"
    assert REACT.clean(f"{steps}\nThought: And more.") == steps
    assert REACT.clean(f"{first}\nobservation 1: X\nThought: Bo.") == first
    assert extract_answer(REACT.clean(steps)) == "Cem"


def test_no_bracket_of_a_gold_question_or_answer_breaks_a_react_action():
    pieces = REACT.gold_chain((Fact("Who wrote A] by [B?", "C", "C wrote it."),), "Cem] [or")
    assert [REACT.cut(piece) for piece in pieces] == [(piece, True) for piece in pieces]
    assert REACT.next_query("q", pieces[:1]) == "Who wrote A) by (B?"
    assert extract_answer(pieces[1]) == "Cem) (or"


def test_a_react_observation_ends_a_generation():
    assert any("\nObservation 1: Al.".startswith(stop) for stop in REACT.stop)


OWN = """
from steper_ray.frameworks import Layout


class Notes:
    layout = Layout(passage="[{title}] {text}\\n", question="? {question}", joiner="\\n- ")
    stop = ("\\n?",)
    demonstrations = "Write notes.\\n"

    def next_query(self, question, chain):
        return chain[-1] if chain else question

    def cut(self, text):
        note, end, _ = text.lstrip("- ").partition("\\n")
        return note.strip(), bool(end)

    def clean(self, text):
        return text.strip()

    def gold_chain(self, facts, answer):
        return (*(fact.statement for fact in facts), f"So the answer is: {answer}.")
"""


async def test_a_framework_of_ones_own_is_one_file_from_the_prompt_to_the_tokens_that_are_learned(
    tmp_path, monkeypatch
):
    (tmp_path / "own_framework.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_framework:Notes"
    config = ReasoningConfig(framework=name, stop="fixed")
    generator = ScriptedGenerator(["- Al made Alba.\n- Al", "- So the answer is: Al."])
    reasoner = Reasoner(
        KeywordRetriever([Passage("1", "Alba", "Al made it.")]), generator, config, SamplingConfig()
    )
    try:
        trajectory = await reasoner.run(Question("q", "Who made Alba?", ("Al",)))
        encoder = PromptEncoder(CharTokenizer(), layouts()[name])
        assert layout_for(config).text("Who?", [], ["Al."]) == "? Who?\n- Al."
    finally:
        del FRAMEWORKS[name]
    assert (trajectory.framework, trajectory.answer) == (name, "Al")
    assert [step.query for step in trajectory.steps] == ["Who made Alba?", "Al made Alba."]
    assert (
        CharTokenizer().decode(encoder.chain(trajectory.chain))
        == "\n- Al made Alba.\n- So the answer is: Al."
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "'nothing' is unknown: use ircot, self_ask, react, iter_retgen, or package.module:Name"),
        ("no.such.module:Name", "cannot be imported: No module named 'no'"),
        ("json:Nothing", "cannot be imported: module 'json' has no attribute 'Nothing'"),
        ("json:JSONDecoder", "has no layout"),
    ],
)
def test_a_framework_that_cannot_be_used_is_named_with_the_fix(name, said):
    with pytest.raises(SteperError, match=said):
        layout_for(ReasoningConfig(framework=name))


def cut_up(framework, text):
    """The pieces of a whole chain, each as `cut` takes it from what is left."""
    pieces = []
    while text := text.lstrip():
        piece, _ = framework.cut(text)
        assert text.startswith(piece)
        pieces.append(piece)
        text = text.removeprefix(piece)
    return pieces


@pytest.mark.parametrize("framework", STEPWISE.values(), ids=STEPWISE)
def test_gold_chains_are_cut_back_into_their_own_pieces(framework):
    pieces = framework.gold_chain(FACTS, "Cem")
    chain = framework.layout.joiner.join(pieces)
    assert len(pieces) == 3
    assert cut_up(framework, chain) == list(pieces)
    assert [extract_answer(piece) for piece in pieces] == [None, None, "Cem"]
    assert extract_answer(framework.clean(chain)) == "Cem"


@pytest.mark.parametrize("framework", STEPWISE.values(), ids=STEPWISE)
def test_a_gold_step_states_its_fact_when_its_passage_was_asked_for(framework):
    pieces = framework.gold_chain(FACTS, "Cem")
    asked = [framework.next_query("q", pieces[:n]) for n in range(3)]
    assert asked[0] == "q"
    if framework is not IRCOT:  # which states a fact as soon as the question or the fact before has found it
        assert asked[1:] == [fact.question for fact in FACTS]
        assert [FACTS[n].answer in piece for n, piece in enumerate(pieces[1:])] == [True, True]


@pytest.mark.parametrize("framework", STEPWISE.values(), ids=STEPWISE)
def test_a_chain_without_facts_is_the_answer(framework):
    (piece,) = framework.gold_chain((), "Cem")
    assert extract_answer(piece) == "Cem"


@pytest.mark.parametrize("framework", STEPWISE.values(), ids=STEPWISE)
def test_a_growing_generation_is_cut_the_same_as_soon_as_its_step_is_complete(framework):
    text = framework.layout.joiner.join(framework.gold_chain(FACTS, "Cem"))
    cuts = [framework.cut(text[:size]) for size in range(len(text) + 1)]
    complete = [piece for piece, surely in cuts if surely]
    assert set(complete) == {framework.gold_chain(FACTS, "Cem")[0]}
    assert cuts[-1][1]
    assert [surely for _, surely in cuts] == sorted(surely for _, surely in cuts)


@pytest.mark.parametrize("framework", STEPWISE.values(), ids=STEPWISE)
def test_no_text_however_broken_leaves_the_retriever_without_a_query(framework):
    rng = Random(0)
    parts = [*"[]:* \n1.", "Thought", "Action", "Search", "Finish", "Observation", "Follow up:", "So ", "Bo"]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randrange(12)))
        chain = [framework.cut(text)[0], framework.clean(text)]
        assert framework.next_query("asked", chain).strip(), text


@pytest.mark.parametrize("name", STEPWISE)
def test_a_step_that_only_reasons_has_no_answer_whatever_endings_of_other_frameworks_it_names(name):
    said = {
        "ircot": "The director of Alba is Bo, as Action: Finish[Bo] would say.",
        "self_ask": "Intermediate answer: Bo\nFollow up: Does Thought: Finish[Bo] end?",
        "react": "Thought: Bo. So the answer is: Bo. So the final answer is: Bo.\nAction: Search[Bo]",
    }[name]
    assert extract_answer(said) is None
    joiner, pieces = layouts()[name].joiner, FRAMEWORKS[name].gold_chain(FACTS, "Cem")
    assert extract_answer(joiner.join([said, *pieces])) == "Cem"


@pytest.mark.parametrize("framework", STEPWISE)
def test_demonstrations_follow_the_layout_they_stand_before(framework):
    layout = layout_for(ReasoningConfig(framework=framework, few_shot=True))
    bare = layout_for(ReasoningConfig(framework=framework))
    assert bare.question.split("{question}")[0] in layout.preamble
    assert "Title: " in layout.preamble
    assert layout.preamble.endswith("\n\n")
    shown = [block for block in layout.preamble.split("\n\n")[1:-1] if not block.startswith("Title: ")]
    assert len(shown) == 2
    before, after = (bare.question + bare.answer).split("{question}")
    for block in shown:
        chain = block.removeprefix(before).partition("?" + after)[2]
        assert chain.startswith(bare.joiner)
        answers = [extract_answer(piece) for piece in cut_up(FRAMEWORKS[framework], chain)]
        assert len(answers) == 3
        assert [answer is not None for answer in answers] == [False, False, True]


def test_an_unreadable_demonstrations_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"reasoning\.demonstrations: .*absent"):
        layout_for(ReasoningConfig(demonstrations=tmp_path / "absent"))
