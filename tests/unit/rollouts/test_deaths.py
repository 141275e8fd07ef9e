"""Which questions kill engines: an engine that dies of some of its questions, played through actor by actor."""

import pytest

from steper_ray.core.errors import EngineDeadError
from steper_ray.rollouts.deaths import ALONE, BARREN, COMPANY, Deaths


def play(questions, kills, in_flight=3, dies_of_anything=False):
    """One actor as rollouts run it: suspects last and alone. Returns what was answered, given up, and the deaths."""
    deaths, answered, fallen = Deaths(), set(), 0
    while True:
        verdicts = deaths.start("actor")
        left = [q for q in questions if q not in answered and q not in verdicts.given_up]
        if not left:
            return answered, verdicts.given_up, fallen
        alone = [q for q in left if q in verdicts.suspects]
        company = [q for q in left if q not in verdicts.suspects]
        turns = [company[at : at + in_flight] for at in range(0, len(company), in_flight)] + [
            [q] for q in alone
        ]
        for turn in turns:
            deaths.asked("actor", turn, alone=turn[0] in verdicts.suspects)
            if dies_of_anything or kills & set(turn):
                fallen += 1
                deaths.dying("out of memory")
                break
            deaths.done("actor", turn)
            answered |= set(turn)


QUESTIONS = [f"q{n}" for n in range(12)]


@pytest.mark.parametrize("killers", [{"q4"}, {"q0"}, {"q11"}, {"q3", "q4"}, {"q0", "q6", "q11"}])
def test_a_question_that_kills_engines_costs_no_other_question(killers):
    answered, given_up, fallen = play(QUESTIONS, killers)
    assert answered == set(QUESTIONS) - killers
    assert set(given_up) == killers
    assert fallen <= len(killers) * (COMPANY + ALONE)


def test_one_death_makes_no_suspect():
    deaths = Deaths()
    deaths.start("a")
    deaths.asked("a", ["q1"], alone=False)
    assert deaths.start("a").suspects == frozenset()
    deaths.asked("a", ["q1"], alone=False)
    assert deaths.start("a").suspects == {"q1"}
    deaths.asked("a", ["q1"], alone=True)
    deaths.done("a", ["q1"])
    assert deaths.start("a").suspects == frozenset()


def test_an_engine_that_dies_of_anything_ends_the_run_with_its_last_words():
    with pytest.raises(
        EngineDeadError, match=r"died before it answered anything: out of memory\. Committed shards"
    ):
        play(QUESTIONS, set(), dies_of_anything=True)


def test_an_engine_that_cannot_even_start_ends_the_run():
    deaths = Deaths()
    for _ in range(BARREN):
        deaths.start("a")
    deaths.start("b")
    with pytest.raises(EngineDeadError, match=f"started {BARREN + 1} times"):
        deaths.start("a")


def test_another_actors_questions_in_flight_are_no_deaths():
    deaths = Deaths()
    deaths.start("a")
    deaths.asked("a", ["q1"], alone=False)
    deaths.start("b")
    assert deaths.in_flight == 1


def test_notes_that_began_later_than_an_actor_go_on_with_it():
    deaths = Deaths()
    deaths.asked("a", ["q1"], alone=False)
    deaths.done("a", ["q1", "q2"])
    deaths.asked("a", ["q3"], alone=False)
    assert deaths.start("a").suspects == frozenset()
    assert deaths.in_flight == 0
