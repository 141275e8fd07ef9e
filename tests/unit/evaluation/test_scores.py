"""Scores over trajectories, worked by hand."""

import math

import pytest

from steper_ray.core.errors import DataError
from steper_ray.evaluation.scores import (
    GroupScores,
    Scored,
    score_trajectories,
)
from steper_ray.evaluation.spread import aggregate, aggregate_groups, spread
from steper_ray.schema import Hit, Passage, Question, Step, StopReason, SubQuestion, Trajectory, Usage


def hits(ids):
    return tuple(Hit(Passage(i, i, i), 1.0) for i in ids)


def trajectory(
    answer,
    answers=("Cem",),
    *,
    gold=(),
    found=((),),
    repeated=0,
    hops=None,
    dataset="musique",
    reason=StopReason.ANSWERED,
    error=None,
):
    """One step for each tuple of passage ids in `found`, each of 10 prompt and 2 completion tokens."""
    question = Question("q", "?", answers, gold_ids=gold, hops=hops, dataset=dataset)
    steps = tuple(
        Step(number, "?", hits(ids), "r", usage=Usage(10, 2), duplicates=repeated)
        for number, ids in enumerate(found, 1)
    )
    return Trajectory(question, "ircot", steps, answer, reason, error)


def test_scores_are_means_over_questions():
    scores = score_trajectories(
        [
            trajectory("Cem"),
            trajectory("in Cem"),
            trajectory("Dor"),
            trajectory("the Cem", found=((), (), ())),
        ]
    )
    assert scores.n == 4
    assert scores.em == 0.5
    assert scores.f1 == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert scores.acc == 0.75
    assert scores.mean_steps == 1.5
    assert (scores.prompt_tokens, scores.completion_tokens) == (15, 3)


DECOMPOSED = Question(
    "q",
    "?",
    ("Cem",),
    decomposition=(SubQuestion("capital of Abo?", "Bru"), SubQuestion("mayor of #1?", "Cem")),
)


@pytest.mark.parametrize(
    ("steps", "sub_answers", "started", "deviation"),
    [
        (["The capital is Bru.", "Its mayor is Cem.", "So the answer is: Cem."], 1.0, 1.0, 0.0),
        (["The capital is Bru.", "Its mayor is Cem. So the answer is: Cem."], 1.0, 1.0, 0.0),
        # Right by luck: what needs another fact is no right start.
        (["Cem is a mayor.", "He is of Dor.", "Hm.", "So.", "So the answer is: Cem."], 0.5, 0.0, 2.0),
        (["The capital is Bruno."], 0.0, 0.0, 1.0),
        ([], 0.0, 0.0, 2.0),
    ],
)
def test_chains_are_held_against_the_gold_decomposition(steps, sub_answers, started, deviation):
    made = tuple(Step(number, "?", (), text) for number, text in enumerate(steps, 1))
    found = score_trajectories(
        [Trajectory(DECOMPOSED, "ircot", made, "Cem", StopReason.ANSWERED), trajectory("Cem")]
    )
    assert (found.sub_answers, found.started, found.deviation) == (sub_answers, started, deviation)


def test_a_step_is_grounded_where_all_it_names_was_found_by_then():
    abo, bru = (
        Hit(Passage(title, title, text), 1.0)
        for title, text in (("Abo", "Its capital is Bru."), ("Bru", "By Cem."))
    )
    steps = (
        Step(1, "?", (abo,), "The capital of Abo is Bru."),
        Step(2, "?", (), "The mayor of Bru is Cem."),  # not found yet
        Step(3, "?", (), "that is all."),  # claims nothing
        Step(4, "?", (bru,), "So the answer is: Cem."),
    )
    question = Question("q", "Who is the mayor of the capital of Abo?", ("Cem",))
    found = score_trajectories([Trajectory(question, "ircot", steps, "Cem", StopReason.ANSWERED)])
    assert found.grounded == pytest.approx(2 / 3)
    assert score_trajectories([trajectory("Cem")]).grounded is None


def test_without_decompositions_there_is_nothing_to_hold_chains_against():
    found = score_trajectories([trajectory("Cem")])
    assert (found.sub_answers, found.started, found.deviation) == (None, None, None)
    assert not {"sub_answers", "started", "deviation"} & set(aggregate([found]))


def test_the_yes_no_rule_follows_each_questions_data_set():
    both = [trajectory("yes it is", ("yes",), dataset=name) for name in ("hotpotqa", "musique")]
    assert score_trajectories(both).f1 == 0.25


def test_a_failed_question_is_wrong_even_with_a_right_answer_and_is_counted():
    scores = score_trajectories(
        [
            trajectory("Cem"),
            trajectory("Cem", reason=StopReason.GENERATOR_FAILED, error="too long"),
            trajectory("Cem", reason=StopReason.RETRIEVER_FAILED),
            trajectory("", found=(), reason=StopReason.REJECTED),
        ]
    )
    assert scores.em == scores.acc == scores.f1 == 0.25
    assert scores.errors == 3
    assert scores.stop_reasons == {
        "answered": 1,
        "generator_failed": 1,
        "rejected": 1,
        "retriever_failed": 1,
    }


def test_a_deadline_is_no_error_its_answer_counts():
    scores = score_trajectories([trajectory("Cem", reason=StopReason.DEADLINE)])
    assert (scores.em, scores.errors) == (1, 0)


def test_recall_is_the_share_of_gold_passages_after_each_step():
    full = trajectory("Cem", gold=("a", "b"), found=(("a", "x"), (), ("b",)))
    half = trajectory("Cem", gold=("a", "b"), found=(("b",),))
    scores = score_trajectories([full, half])
    assert scores.recall == 0.75
    assert scores.recall_by_step == (0.5, 0.5, 0.75)  # `half` keeps 0.5 after it ended


def test_recall_leaves_out_questions_without_gold_and_counts_those_without_steps():
    without = trajectory("Cem", found=(("x",),))
    refused = trajectory("", gold=("a",), found=(), reason=StopReason.REJECTED)
    found = trajectory("Cem", gold=("a",), found=(("a",),))
    scores = score_trajectories([without, refused, found])
    assert scores.recall == 0.5
    assert scores.recall_by_step == (0.5,)


def test_recall_is_unknown_where_no_question_names_gold_passages():
    scores = score_trajectories([trajectory("Cem", found=(("x",),))])
    assert scores.recall is None
    assert scores.recall_by_step == ()


def test_duplicates_are_the_share_of_found_passages_that_were_not_new():
    both = [
        trajectory("Cem", found=(("a", "b", "c"),), repeated=1),
        trajectory("Cem", found=(("a",),), repeated=3),
    ]
    assert score_trajectories(both).duplicates == 0.5
    assert score_trajectories([trajectory("", found=())]).duplicates == 0


def test_a_question_that_is_owed_is_wrong_counted_and_in_no_mean_of_what_was_done():
    scored = Scored()
    scored.add(trajectory("Cem", hops=2))
    scored.add_owed(trajectory("", hops=2).question)
    scores = scored.scores()
    assert (scores.n, scores.owed, scores.errors, scores.em) == (2, 1, 1, 0.5)
    assert (scores.mean_steps, scores.prompt_tokens) == (1, 10)
    assert scores.by_hops["2"].em == 0.5
    assert {steps: group.n for steps, group in scores.by_steps.items()} == {"1": 1}


def test_the_scores_of_parts_are_those_of_the_whole():
    answers = ["Cem", "in Cem", "the mayor of Cem", "Dor"] * 3
    rows = [
        trajectory(answer, gold=("a", "b"), found=(("a",), ("b",), ())[: 1 + n % 3], hops=n % 2, repeated=n)
        for n, answer in enumerate(answers)
    ]
    total = Scored()
    for at in range(0, len(rows), 5):
        part = Scored()
        for row in rows[at : at + 5]:
            part.add(row)
        total.extend(part)
    assert total.scores() == score_trajectories(rows)


def test_hops_and_steps_used_are_broken_down_in_numeric_order():
    scores = score_trajectories(
        [
            trajectory("Cem", hops=10, found=((),) * 2),
            trajectory("Cem", hops=2),
            trajectory("Dor", hops=2, found=((),) * 2),
            trajectory("Cem"),
        ]
    )
    assert list(scores.by_hops) == ["2", "10"]
    assert scores.by_hops["2"] == GroupScores(n=2, em=0.5, f1=0.5, acc=0.5, recall=None, mean_steps=1.5)
    assert {steps: (group.n, group.em) for steps, group in scores.by_steps.items()} == {
        "1": (2, 1.0),
        "2": (2, 0.5),
    }


def test_nothing_to_score_and_unlabelled_questions_are_errors_that_say_so():
    with pytest.raises(DataError, match="test set is empty"):
        score_trajectories([])
    with pytest.raises(DataError, match="'q' has no gold answer"):
        score_trajectories([trajectory("Cem", ())])


def test_spread_over_seeds_is_the_sample_standard_deviation():
    over = spread([0.2, 0.4, 0.9])
    assert over.mean == pytest.approx(0.5)
    assert (over.min, over.max, over.n) == (0.2, 0.9, 3)
    assert over.std == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert spread([0.3]).std == 0


def test_aggregation_leaves_out_what_a_seed_does_not_know():
    bare = score_trajectories([trajectory("Dor")])
    known = score_trajectories([trajectory("Cem", gold=("a",), found=(("a",),))])
    wrong = score_trajectories([trajectory("Dor", gold=("a",), found=(("x",),))])
    over = aggregate([known, wrong])
    assert (over["em"].mean, over["recall"].mean) == (0.5, 0.5)
    assert over["em"].std == pytest.approx(math.sqrt(0.5))
    assert "recall" not in aggregate([known, bare])


def test_groups_of_seeds_are_weighted_by_their_questions():
    one = {"1": GroupScores(3, 1.0, 1.0, 1.0, 0.5, 1.0)}
    two = {"1": GroupScores(1, 0.0, 0.0, 0.0, None, 1.0), "2": GroupScores(2, 0.5, 0.5, 0.5, 1.0, 2.0)}
    merged = aggregate_groups([one, two])
    assert merged["1"] == GroupScores(4, 0.75, 0.75, 0.75, None, 1.0)
    assert merged["2"] == two["2"]
