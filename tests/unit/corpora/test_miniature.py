"""The made-up worlds: reproducible, fresh, answerable, and disjoint between splits."""

import re

import pytest

from steper_ray.corpora.miniature import make_corpus, make_worlds
from steper_ray.miniature.curriculum import RELATION_NAMES

PASSAGES, QUESTIONS = make_corpus(3, 6, 20, "train")


def words(passages):
    return {w for p in passages for w in re.findall(r"[A-Z][a-z]+", p.title.removeprefix("Note on "))}


def test_the_same_seed_gives_the_same_worlds_and_another_seed_others():
    assert make_corpus(3, 6, 20, "train") == (PASSAGES, QUESTIONS)
    assert make_corpus(4, 6, 20, "train")[0] != PASSAGES


def test_the_first_worlds_do_not_depend_on_how_many_follow():
    assert make_corpus(3, 2, 20, "train")[1] == QUESTIONS[:40]


def test_no_name_of_the_test_split_occurs_in_the_train_split():
    test, _ = make_corpus(3, 6, 1, "test")
    assert not words(test) & words(PASSAGES)


def test_every_name_is_fresh_in_its_world():
    worlds = [words(world.passages) for world, _ in make_worlds(3, 6, "train")]
    assert sum(map(len, worlds)) == len(set().union(*worlds))


def test_ids_are_unique():
    assert len({p.id for p in PASSAGES}) == len(PASSAGES)
    assert len({q.id for q in QUESTIONS}) == len(QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS[:40], ids=lambda q: q.id)
def test_each_hop_is_stated_in_its_support_passage_and_leads_to_the_answer(question):
    by_id = {p.id: p for p in PASSAGES}
    assert 2 <= question.hops == len(question.decomposition) <= 4
    for hop in question.decomposition:
        assert hop.answer in by_id[hop.support_id].text
    assert question.decomposition[-1].answer == question.answers[0]
    assert question.answers[0] not in question.text


def test_questions_have_two_to_four_hops():
    assert {q.hops for q in QUESTIONS} == {2, 3, 4}


def test_the_halves_of_the_relations_share_the_capital_alone_and_no_wording():
    halves = [make_corpus(3, 6, 20, "train", half) for half in ("first", "second")]
    asked = [
        {word for question in questions for word in re.findall(r"the (\w+) of", question.text)}
        for _, questions in halves
    ]
    assert asked[0] & asked[1] == {"capital"}
    assert asked[0] | asked[1] == set(RELATION_NAMES)
    texts = [" ".join(passage.text for passage in passages) for passages, _ in halves]
    assert " was directed by " in texts[0]
    assert " is ruled from " in texts[1]
    assert " is ruled from " not in texts[0]
    assert "The capital of " not in texts[1]
