"""Two evaluations compared by `steper compare`: the differences, where they part, and what cannot be compared."""

import re
from dataclasses import replace

import pytest
from distilled import stored_evaluation, trajectory
from scipy import stats
from typer.testing import CliRunner

from steper_ray import stages
from steper_ray.cli.main import app
from steper_ray.core.errors import DataError
from steper_ray.evaluation.side_by_side import compare_evaluations
from steper_ray.evaluation.store import EvalJob, job_files


def _apart(one):
    """With separate gold passages: questions that share some are one cluster."""
    return replace(one, question=replace(one.question, gold_ids=(f"gold {one.question.id}",)))


@pytest.fixture
def evaluate(tmp_path):
    """Writes the evaluation of a model that answers the questions of `right` right and those of `wrong` wrong."""

    def write(name, right, wrong, *, owed=0, unit="chain"):
        made = [trajectory(number) for number in right] + [
            trajectory(number, answer="Dor") for number in wrong
        ]
        made = [_apart(one) for one in made]
        made.sort(key=lambda one: int(one.question.id[1:]))
        stored_evaluation(tmp_path, name, made, unit, owed)

    return write


def test_each_score_is_compared_over_the_same_questions_and_the_parting_ones_are_shown(evaluate, tmp_path):
    evaluate("mine", right=range(1, 10), wrong=[10])
    evaluate("plain", right=[1, 2, 10], wrong=range(3, 10))
    (found,) = compare_evaluations(tmp_path, "mine", "plain", show=3)
    assert (found.both_right, found.both_wrong, found.one_alone, found.other_alone) == (2, 0, 7, 1)
    em = next(one for one in found.comparisons if one.metric == "em")
    assert (em.n, em.difference) == (10, pytest.approx(0.6))
    # Of yes and no, the permutation within questions is McNemar's exact test.
    assert em.p == pytest.approx(stats.binomtest(1, 8).pvalue, abs=0.02)
    assert [pair[0].question.id for pair in found.parted] == ["q3", "q4", "q5"]

    done = CliRunner().invoke(app, ["compare", str(tmp_path), "mine", "plain", "--show", "1"])
    assert done.exit_code == 0
    assert re.search(r"mine +plain +chain +EM +\+60\.0 ", done.output)
    assert "both right 2, both wrong 0, mine alone right 7, plain alone right 1" in done.output
    assert (
        "q3: Question 3?\n  gold: Cem\n  mine (right): Cem < Al is Bo. / So the answer is: Cem."
        in done.output
    )
    assert "  plain (wrong): Dor < " in done.output


def test_seeds_are_one_model_whose_score_of_a_question_is_their_mean(evaluate, tmp_path):
    evaluate("a-0", right=[1, 2], wrong=[3, 4])
    evaluate("a-1", right=[1], wrong=[2, 3, 4])
    evaluate("b", right=[], wrong=[1, 2, 3, 4])
    (found,) = compare_evaluations(tmp_path, "a-0,a-1", "b")
    assert found.comparisons[0].difference == pytest.approx(1.5 / 4)
    assert found.comparisons[0].model == "a-0,a-1"


def test_an_owed_question_counts_as_wrong_and_other_questions_are_refused(evaluate, tmp_path):
    evaluate("whole", right=[1, 2, 3], wrong=[])
    evaluate("owing", right=[1, 2], wrong=[], owed=1)
    evaluate("other", right=[1, 2], wrong=[])
    evaluate("cut", right=[1], wrong=[], unit="sentence")
    (found,) = compare_evaluations(tmp_path, "whole", "owing", show=5)
    assert (found.both_right, found.one_alone, found.parted) == (2, 1, ())
    assert found.comparisons[0].difference == pytest.approx(1 / 3)
    for one, other, said in (
        ("whole", "other", r"other and whole were asked other questions \(1 of 3 .*same `evaluate.corpus`"),
        ("whole", "nobody", "no evaluation named 'nobody'; there are: cut, other, owing, whole"),
        ("whole", "cut", "share no step unit: set evaluate.units"),
    ):
        with pytest.raises(DataError, match=said):
            stages.compare(tmp_path, one, other)


def test_scores_that_were_changed_are_not_compared(evaluate, tmp_path):
    evaluate("steper", right=[1], wrong=[2])
    file = job_files(tmp_path, EvalJob("steper", "", "chain")).scores
    file.write_text(file.read_text().replace('"owed": 0', '"owed": 9'))
    with pytest.raises(DataError, match=r"steper-chain\.json: changed since it was written: evaluate again"):
        compare_evaluations(tmp_path, "steper", "steper")
