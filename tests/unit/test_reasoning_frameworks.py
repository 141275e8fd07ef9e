"""What one step is, and what it asks the retriever, in both frameworks."""

import pytest

from steper_ray.answers import extract_answer
from steper_ray.config import ReasoningConfig
from steper_ray.errors import DataError
from steper_ray.reasoning.frameworks import FRAMEWORKS, Fact, layout_for
from steper_ray.reasoning.passages import PassagePool
from steper_ray.reasoning.sentences import first_sentence, split_sentences
from steper_ray.schema import Hit, Passage

IRCOT, SELF_ASK = FRAMEWORKS["ircot"], FRAMEWORKS["self_ask"]
FACTS = (
    Fact("Who directed Alba?", "Bo", "The director of Alba is Bo."),
    Fact("Where was Bo born?", "Cem", "Bo was born in Cem."),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bo made it. The end", ("Bo made it.", True)),
        ("Bo made it.", ("Bo made it.", False)),
        ("Dr. J. Smith made it. Then", ("Dr. J. Smith made it.", True)),
        ("It cost 3.5 million. She", ("It cost 3.5 million.", True)),
        ('"Is it?" He asked', ('"Is it?"', True)),
        ("no stop at all\nnext", ("no stop at all", True)),
        ("  led by blanks. Yes", ("led by blanks.", True)),
        ("", ("", False)),
    ],
)
def test_first_sentence_ends_at_a_real_boundary(text, expected):
    assert first_sentence(text) == expected


def test_sentences_are_split_without_loss():
    assert split_sentences("Mr. A left. B stayed! C?") == ["Mr. A left.", "B stayed!", "C?"]


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


@pytest.mark.parametrize("framework", [IRCOT, SELF_ASK])
def test_gold_chains_are_cut_back_into_their_own_pieces(framework):
    pieces = framework.gold_chain(FACTS, "Cem")
    joiner = " " if framework is IRCOT else "\n"
    assert len(pieces) == 3
    for number, piece in enumerate(pieces):
        assert framework.cut(joiner.join(pieces[number:]))[0] == piece
    assert [extract_answer(piece) for piece in pieces] == [None, None, "Cem"]


def _hit(number: int, title: str, text: str) -> Hit:
    return Hit(Passage(str(number), title, text), 1.0)


def test_passages_keep_their_order_lose_near_duplicates_and_are_capped():
    pool = PassagePool(limit=2)
    assert [h.passage.id for h in pool.add([_hit(1, "A", "x"), _hit(2, "a", "The x!")])] == ["1"]
    assert [h.passage.id for h in pool.add([_hit(3, "B", "x"), _hit(4, "C", "x")])] == ["3"]
    assert [p.id for p in pool.passages] == ["1", "3"]


@pytest.mark.parametrize("framework", ["ircot", "self_ask"])
def test_demonstrations_follow_the_layout_they_stand_before(framework):
    layout = layout_for(ReasoningConfig(framework=framework, few_shot=True))
    bare = layout_for(ReasoningConfig(framework=framework))
    assert bare.question.split("{question}")[0] in layout.preamble
    assert "Title: " in layout.preamble
    assert layout.preamble.endswith("\n\n")


def test_an_unreadable_demonstrations_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"reasoning\.demonstrations: .*absent"):
        layout_for(ReasoningConfig(demonstrations=tmp_path / "absent"))
