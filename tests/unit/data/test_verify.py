"""What a step claims, how far the passages hold it, and that wrong steps under a right answer are caught."""

import dataclasses
import math
from collections import Counter
from random import Random

import pytest
from distilled import trajectory
from training_examples import gold_examples

from steper_ray.config import VerifyConfig
from steper_ray.core import claims
from steper_ray.core.claims import grounding, support
from steper_ray.data.verify import first_failure, score_steps, thresholds
from steper_ray.schema import Hit, Passage, Question, Step, StepScore, StopReason, Trajectory

PASSAGES = [
    Passage("1", "Alba", "Alba is a 1,999-page book. It was written by Bo O'Neil."),
    Passage("2", "Bo O'Neil", "Bo O\u2019Neil was born in the University of the West."),
]


def test_only_passages_of_this_step_and_before_count():
    steps = ["Alba was written by Bo.", "Bo was born in Cem.", "So the answer is: Cem."]
    t = trajectory(pieces=steps, found=[(0,), (1,), ()])
    late = Passage("z", "Cem", "Bo, Alba")
    hits = [t.steps[0].hits, t.steps[1].hits, (dataclasses.replace(t.steps[0].hits[0], passage=late),)]
    t = dataclasses.replace(
        t, steps=tuple(dataclasses.replace(s, hits=h) for s, h in zip(t.steps, hits, strict=True))
    )
    assert [s.score for s in score_steps(t, ["grounding"])] == [0.0, 0.0, 1.0]


def test_confidence_is_the_mean_probability_of_a_token():
    t = trajectory()
    t = dataclasses.replace(
        t, steps=(dataclasses.replace(t.steps[0], mean_logprob=math.log(0.5)), t.steps[1])
    )
    assert [s.score for s in score_steps(t, ["confidence"])] == [pytest.approx(0.5), None]


def test_the_first_step_below_is_told_and_a_step_without_score_passes():
    scores = [StepScore("q", 1, "support", None), StepScore("q", 2, "support", 0.5)]
    assert first_failure(scores, {"support": 0.5}) is None
    assert first_failure(scores, {"support": 0.6}) == scores[1]


def test_both_verifiers_together_analyse_each_passage_and_each_step_once(monkeypatch):
    seen = Counter()

    def counted(function):
        def call(text):
            seen[text] += 1
            return function(text)

        return call

    monkeypatch.setattr(claims, "_plain", counted(claims._plain))
    monkeypatch.setattr(claims, "claims_of", counted(claims.claims_of))
    pieces = ("T0 is by Bo.", "T2 and T1 are by Bo.", "So the answer is: T3.")
    t = trajectory(pieces=pieces, found=[(0, 1), (2,), (3,)])
    scores = score_steps(t, ["grounding", "support"])
    assert {seen[text] for text in (*t.chain, *(p.text for p in t.passages))} == {1}
    one_by_one = [(grounding, t.question.text), (support,)]
    assert [s.score for s in scores] == [
        verifier(step.reasoning, *question, [hit.passage for s in t.steps[:n] for hit in s.hits])
        for verifier, *question in one_by_one
        for n, step in enumerate(t.steps, 1)
    ]


def test_only_verifiers_that_are_set_are_run():
    assert thresholds(VerifyConfig()) == {}
    assert thresholds(VerifyConfig(support=0.5, grounding=0.0)) == {"grounding": 0.0, "support": 0.5}


@pytest.mark.parametrize(
    ("found", "searched", "answer", "scores"),
    [
        ("Bo O'Neil", "Bo O'Neil", "the University of the West", [None, 1.0, 1.0]),
        ("Bo O'Neil", "Zog", "the University of the West", [None, 1.0, 1.0]),  # a search claims nothing
        ("Zog", "Bo O'Neil", "the University of the West", [None, 0.5, 1.0]),
        ("Bo O'Neil", "Bo O'Neil", "Zog", [None, 1.0, 0.5]),
    ],
)
def test_react_is_judged_by_its_thoughts_and_its_answer(found, searched, answer, scores):
    pieces = (
        "Thought: I need to look up the author.\nAction: Search[author of Alba]",
        f"Thought: Alba was written by {found}.\nAction: Search[birthplace of {searched}]",
        f"Thought: Bo O'Neil was born there.\nAction: Finish[{answer}]",
    )
    steps = tuple(
        Step(n, "", (Hit(passage, 1.0),) if passage else (), piece)
        for n, (passage, piece) in enumerate(zip([PASSAGES[0], PASSAGES[1], None], pieces, strict=True), 1)
    )
    t = Trajectory(Question("q", "Where?", (answer,)), "react", steps, answer, StopReason.ANSWERED)
    for verifier in ("grounding", "support"):
        assert [s.score for s in score_steps(t, [verifier])] == scores


def gold_trajectories():
    for example in gold_examples(worlds=3, questions=8):
        if example.step == example.n_steps:
            steps = tuple(
                Step(n, "", tuple(Hit(p, 1.0) for p in passages), piece)
                for n, (passages, piece) in enumerate(zip(example.passages, example.chain, strict=True), 1)
            )
            question = Question(example.question_id, example.question, ("right",))
            yield Trajectory(question, "ircot", steps, "right", StopReason.ANSWERED)


def planted(t, kind, rng):
    """The trajectory with one step before the last made wrong; the answer stays right."""
    at = rng.randrange(len(t.steps) - 1)
    step = t.steps[at]
    seen = [hit.passage.title for s in t.steps[: at + 1] for hit in s.hits]
    value = step.reasoning.removesuffix(".").split()[-1]
    wrong = "Qwexo"
    if kind == "swapped":
        wrong = rng.choice([title for title in seen if title not in step.reasoning])
    steps = list(t.steps)
    steps[at] = dataclasses.replace(step, reasoning=step.reasoning.replace(value, wrong))
    return dataclasses.replace(t, steps=tuple(steps))


@pytest.mark.parametrize(
    ("verifier", "kind", "recall"),
    [("grounding", "invented", 1.0), ("support", "invented", 1.0), ("support", "swapped", 0.8)],
)
def test_planted_wrong_steps_under_a_right_answer_are_caught_and_right_ones_are_not(verifier, kind, recall):
    rng, least = Random(0), {verifier: 1.0}
    right = list(gold_trajectories())
    assert len(right) > 20
    wrong = [planted(t, kind, rng) for t in right]

    def failed(trajectories):
        return [t for t in trajectories if first_failure(score_steps(t, [verifier]), least)]

    assert len(failed(wrong)) >= recall * len(wrong)
    assert failed(right) == []
