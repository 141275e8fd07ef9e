"""Which questions a student is asked while it learns."""

import pytest

from steper_ray.config import Config
from steper_ray.core.errors import DataError
from steper_ray.core.splits import draw
from steper_ray.corpora import open_corpus
from steper_ray.evaluation.watch import questions_of

CORPUS = {"miniature": {"worlds": 2, "questions_per_world": 8}}


def asked(**validation):
    return questions_of(Config(corpus=CORPUS, train={"validation": validation}))


def everyone():
    return sorted(
        open_corpus(Config(corpus=CORPUS).corpus).questions(), key=lambda question: draw(question.id)
    )


def test_of_a_share_only_questions_that_are_held_out_are_asked():
    assert asked(share=0.5, questions=3) == everyone()[:3]
    held_out = [question for question in everyone() if draw(question.id) < 0.5]
    assert 3 < len(held_out) < 16
    assert asked(share=0.5, questions=100) == held_out


def test_of_a_number_the_first_that_are_held_out_are_asked():
    assert asked(number=4, questions=2) == everyone()[:2]


def test_a_corpus_of_its_own_is_asked_whatever_is_held_out():
    other = {"miniature": {"split": "test", "worlds": 1, "questions_per_world": 4}}
    found = asked(trajectories="x.parquet", questions=100, corpus=other)
    assert len(found) == 4
    assert not {question.id for question in found} & {question.id for question in everyone()}


def test_a_share_that_holds_no_question_out_is_named():
    with pytest.raises(DataError, match=r"raise train.validation.share, or name a corpus"):
        asked(share=1e-9, questions=3)
