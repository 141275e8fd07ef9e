"""What a text claims, in which passages it stands, and how much of it."""

import pytest

from steper_ray.core.claims import Ground, Grounds, claims_of, grounding, support
from steper_ray.schema import Passage

PASSAGES = [
    Passage("1", "Alba", "Alba is a 1,999-page book. It was written by Bo O'Neil."),
    Passage("2", "Bo O'Neil", "Bo O\u2019Neil was born in the University of the West."),
]
#: Found after PASSAGES: one that repeats a fact of theirs, one that only shares names, one about something else.
MORE = [
    Passage("3", "Bo's books", "Bo O'Neil has written Alba and Cem."),
    Passage("4", "Readings", "Alba is read in the University of the West."),
    Passage("5", "Dor", "Dor lies in the West."),
]


@pytest.mark.parametrize(
    ("reasoning", "names", "numbers", "answer"),
    [
        ("The director of Alba is Bo.", ("alba", "bo"), (), None),
        ("In 1,204 Bo's wife left.", ("bo",), ("1204",), None),
        ("Bo's Book of Days is on the iPod.", ("bo", "book of days"), (), None),
        ("Beyonc\u00e9 met Jean-Luc.", ("beyonce", "jean luc"), (), None),
        ("Both Bo and Cem did.", ("bo", "cem"), (), None),
        ("He studied at the University of the West.", ("university of west",), (), None),
        ("So the answer is: the West.", (), (), "west"),
        ("Thus both share it. So the answer is: yes.", (), (), None),
        ("Intermediate answer: Bo\nFollow up: Where was Cem born?", ("bo",), (), None),
        ("Intermediate answer: Bo\nSo the final answer is: Bo", ("bo",), (), "bo"),
        ("So it is, as they said.", (), (), None),
        ("Thought: Bo left Cem in 1999.\nAction: Search[Zog 7]", ("bo", "cem"), ("1999",), None),
        ("Thought: Bo was born in Cem.\nAction: Finish[the Dor]", ("bo", "cem"), (), "dor"),
        ("Thought: The two differ.\nAction: Finish[no]", (), (), None),
        ("Thought: I'll see. Let me search. Now I look for Bo.\nAction: Lookup[Zog]", ("bo",), (), None),
        ("Thought: I\u2019ll look for Bo.\nAction: Search[Bo]", ("bo",), (), None),
        ("Action: Search[Bo]\nThought: Cem won.\nAction: Finish[Cem]", ("cem",), (), "cem"),
    ],
)
def test_a_step_claims_names_numbers_and_the_answer(reasoning, names, numbers, answer):
    claims = claims_of(reasoning)
    assert (claims.names, claims.numbers, claims.answer) == (names, numbers, answer)


@pytest.mark.parametrize(
    ("reasoning", "score"),
    [
        ("Alba was written by Bo O'Neil.", 1.0),
        ("Alba has 1999 pages.", 1.0),
        ("Alba was written by Zog.", 0.5),
        ("Alb was written by Zog.", 0.0),  # whole words
        ("The film Cem tells of Alba.", 1.0),  # the question names Cem
        ("So the answer is: Cem.", 0.0),  # an answer must be read, not asked
        ("So it is.", None),
    ],
)
def test_grounding_is_the_share_of_claims_that_stand_in_what_was_seen(reasoning, score):
    assert grounding(reasoning, "Who wrote Cem?", PASSAGES) == score


@pytest.mark.parametrize(
    ("written", "passage"),
    [
        ("Jean-Luc", "Jean\u2011Luc"),
        ("Jean Luc", "Jean/Luc"),
        ("Jean-Luc", "Jean\u2014Luc"),
        ("Beyonc\u00e9", "Beyonce"),
        ("Beyonce", "Beyonce\u0301"),
        ("Bo", "Bo\u2019s"),
        ("O'Neil", "O\u2019Neil"),
        ("Fine", "\ufb01ne"),
    ],
)
def test_spellings_that_chains_and_passages_mix_are_one(written, passage):
    assert support(f"He met {written}.", [Passage("1", "", f"He met {passage} there.")]) == 1.0


def test_support_asks_for_all_claims_in_one_passage():
    assert support("Alba was written by Bo O'Neil.", PASSAGES) == 1.0
    assert support("Alba is in the University of the West.", PASSAGES) == 0.5
    assert support("So it is.", PASSAGES) is None
    assert support("Alba is a book.", []) == 0.0


@pytest.mark.parametrize(
    ("reasoning", "passages", "missing"),
    [
        ("Alba was written by Bo O'Neil.", (0,), ()),  # the third says so too, and has fewer of the words
        ("Cem is by Bo O'Neil.", (2,), ()),
        ("Cem is read in Dor.", (2, 4), ()),  # joins two facts: in the order they were found
        ("Alba was written by J. Zog-Fay.", (0,), ("J", "Zog-Fay")),  # in the sentence's own words
        ("Alba was written by Zog in 1888.", (0,), ("1888",)),
        ("Zog was born in Yew.", (), ("Yew",)),  # the question names Zog
        ("So the answer is: Zog.", (), ("Zog",)),  # an answer must be read, not asked
        ("So the answer is: the West.", (1,), ()),
        ("Zog is one.", (), ()),
    ],
)
def test_a_sentence_is_tied_to_few_passages_that_hold_all_of_it_that_stands_anywhere(
    reasoning, passages, missing
):
    assert Ground("Who knew Zog?", PASSAGES + MORE).of(reasoning) == Grounds(passages, missing)


def test_a_sentence_without_names_and_numbers_is_tied_to_nothing():
    assert Ground("Who?", PASSAGES).of("So he was born there.") is None
    assert Ground("Who?", PASSAGES).of("So the answer is: no.") is None


def test_a_fact_that_is_stated_in_one_place_goes_before_names_that_only_meet_in_a_passage():
    apart = Passage("1", "Alba", "Alba was made by Dor. Alba was directed by Bo.")
    stated = Passage(
        "2", "Bo", "Ann is a friend. He works for Dor."
    )  # the title is part of each of its facts
    assert Ground("Who?", [apart, stated]).of("The employer of Bo is Dor.") == Grounds((1,), ())


def test_a_passage_that_holds_more_of_the_claims_goes_before_one_that_states_fewer_in_one_place():
    close = Passage("1", "Yew", "Alba and Bo met.")
    more = Passage("2", "", "Alba sang. Bo danced. Cem left.")
    assert Ground("Who?", [close, more]).of("Alba, Bo and Cem met at the wedding.") == Grounds((1,), ())


def test_a_conclusion_stands_on_what_the_chain_found_before_it():
    ground = Ground("Who?", [Passage("1", "Eve", "Eve knows Dor."), Passage("2", "Bo", "Bo works for Dor.")])
    assert ground.of("So the answer is: Dor.") == Grounds((0,), ())
    ground.of("Bo works for Dor.")
    assert ground.of("So the answer is: Dor.") == Grounds((1,), ())


def test_a_sentence_stands_on_what_was_found_before_it():
    ground = Ground("Who?", PASSAGES[:1])
    assert ground.of("Bo O'Neil left the University of the West.") == Grounds(
        (0,), ("University of the West",)
    )
    ground.add(PASSAGES[1:])
    assert ground.of("Bo O'Neil left the University of the West.") == Grounds((1,), ())
