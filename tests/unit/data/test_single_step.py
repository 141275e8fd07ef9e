"""What the single-step baselines learn from a trajectory."""

import dataclasses

import pytest
from distilled import trajectory

from steper_ray.config import ReasoningConfig
from steper_ray.data.single_step import single_steps
from steper_ray.schema import Hit, Passage

ALBA = Passage("a", "Alba", "Alba is a film by Bo Rand.")
RAND = Passage("r", "Bo Rand", "The mother of Bo Rand is Cy Dahl.")
OTHER = Passage("o", "Otho", "Otho is a river.")
PIECES = ("Alba is by Bo Rand.", "The mother of Bo Rand is Cy Dahl.", "So the answer is: Cy Dahl.")
RATIONALE = " ".join(PIECES)


class Found:
    """The same passages for each query."""

    def __init__(self, *passages):
        self.passages, self.queries = passages, []

    def search(self, queries, k):
        self.queries += queries
        return [[Hit(passage, 1.0) for passage in self.passages[:k]] for _ in queries]


def learned(form, *passages, k=4):
    found = Found(*passages)
    whole = trajectory(pieces=PIECES, answer="Cy Dahl", answers=("Cy Dahl",), found=((1,), (2,), (3,)))
    (made,) = single_steps([whole], found, ReasoningConfig(k=k), form)
    (step,) = made.steps
    assert found.queries == [step.query]
    assert dataclasses.replace(made, steps=whole.steps) == whole
    return step


def test_kard_searches_with_the_rationale_and_learns_it():
    step = learned("kard", ALBA, RAND, OTHER, k=2)
    assert (step.query, step.reasoning) == (RATIONALE, RATIONALE)
    assert [hit.passage for hit in step.hits] == [ALBA, RAND]


@pytest.mark.parametrize(
    ("passages", "text"),
    [
        (
            (OTHER, RAND, ALBA),
            f"Passage 1 tells nothing. Passage 2 tells: {PIECES[1]} Passage 3 tells: {PIECES[0]} {PIECES[2]}",
        ),
        ((ALBA,), f"Passage 1 tells: {PIECES[0]} {PIECES[1]} {PIECES[2]}"),
        ((), RATIONALE),
    ],
)
def test_chain_of_note_notes_what_each_passage_tells_and_goes_on_with_the_rest(passages, text):
    step = learned("chain_of_note", *passages)
    assert (step.query, step.reasoning) == ("Question 1?", text)


def test_sail_marks_the_passages_that_inform_before_it_reasons():
    step = learned("sail", OTHER, ALBA)
    marks = "Passage 1 is distracting. Passage 2 is informative."
    assert (step.query, step.reasoning) == ("Question 1?", f"{marks} {RATIONALE}")
