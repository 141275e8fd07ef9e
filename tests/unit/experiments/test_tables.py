"""An outcome as a table beside the paper's values, and as a figure."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from steper_ray.evaluation.judging import Judged
from steper_ray.evaluation.results import Curves
from steper_ray.evaluation.scores import GroupScores
from steper_ray.evaluation.spread import Spread
from steper_ray.evaluation.statistics import Comparison, Interval
from steper_ray.evaluation.timing import Timing
from steper_ray.experiments.plan import experiments
from steper_ray.experiments.run import Outcome, Row
from steper_ray.experiments.tables import figure, markdown

KNOWN = experiments({}, ["first", "second"])
ACC = Interval(0.61, 0.55, 0.67, 200, 180)


def spread(mean: float, n: int = 3) -> Spread:
    return Spread(mean, mean - 0.01, mean + 0.01, 0.01, n)


def row(label: str, data: str = "hotpotqa", **groups: GroupScores) -> Row:
    scores = {"acc": spread(0.61), "recall": spread(0.74), "duplicates": spread(0.26), "em": spread(0.5)}
    return Row(data, label, "chain", scores, ACC, groups)


def outcome(name: str, *rows: Row, sigma: dict[str, list[Curves]] | None = None) -> Outcome:
    compared = Comparison(
        "difficulty-aware", "uniform", "chain", "acc", 0.02, -0.01, 0.05, 0.03, 200, 180, 0.09
    )
    return Outcome(KNOWN[name], rows, [("hotpotqa", compared)] if name == "table2" else [], sigma or {})


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_stands_beside_the_papers_value_with_spread_and_interval():
    text = markdown(outcome("table2", row("uniform"), row("difficulty-aware", "other")))
    assert text.startswith("## Weights of the three tasks (Table 2)\n")
    assert cells(text, "hotpotqa | uniform") == [
        "hotpotqa",
        "uniform",
        "chain",
        "58.4",
        "61.0 ±1.0 [55.0, 67.0]",
    ]
    assert cells(text, "other")[3] == "61"  # the paper has no such data set: its first one's value
    assert "Beside other stand the paper's values of hotpotqa." in text
    assert "hotpotqa: 200 questions in 180 clusters" in text
    compared = cells(text, "hotpotqa | difficulty-aware")
    assert compared[4:] == ["+2.0", "-1.0 to +5.0", "0.030", "0.090"]


def test_ratings_of_a_judge_stand_beside_those_of_the_papers_judge():
    ratings = {"expansion": (Interval(0.7, 0.6, 0.8, 50, 50), Interval(0.5, 0.4, 0.6, 50, 50))}
    compared = Comparison("a", "b", "chain", "expansion", 0.2, 0.1, 0.3, 0.01, 50, 50, 0.02)
    said = Judged("chain", ratings, [compared], {"expansion": 0.9}, 0)
    plain = outcome("fig3", row("StepER"))
    text = markdown(replace(plain, judged=[("hotpotqa", "StepER", "+ first", said)]))
    (line,) = [line for line in text.splitlines() if "expansion" in line]
    assert line.strip("| ").split(" | ") == [
        *("hotpotqa", "StepER", "+ first", "chain", "expansion", "59.6", "52.6", "70.0", "50.0"),
        *("+20.0", "+10.0 to +30.0", "0.020"),
    ]
    assert "judge" not in markdown(plain)


def timed(label: str, seconds: float, acc: float, joules: float | None = None) -> Row:
    took = Timing(Interval(seconds, seconds - 0.1, seconds + 0.1, 20, 18), 40.0, joules)
    right = Interval(acc, acc - 0.1, acc + 0.1, 200, 180)
    scores = {"acc": spread(acc)}
    return replace(row(label, "2wiki"), scores=scores, acc=right, timing=took, parameters=7.6e9)


def test_seconds_stand_beside_the_papers_with_energy_and_who_is_beaten_in_both():
    rows = [
        timed("StepER, 7B", 2.0, 0.5, 30.0),
        timed("StepER, 3B", 1.0, 0.5),
        timed("StepER, 0.5B", 0.5, 0.25),
        timed("teacher, IRCoT", 9.0, 0.0, 30.0),
    ]
    made = outcome("fig6", *rows)
    text = markdown(made)
    assert cells(text, "2wiki | StepER, 7B")[3:] == [
        *("7,600.0 M", "2.8", "56", "2.00 [1.90, 2.10]", "50.0 ±1.0 [40.0, 60.0]", "40", "60.0", ""),
    ]
    marks = {name: cells(text, f"2wiki | {name}")[-2:] for name in ("StepER, 3B", "StepER, 0.5B", "teacher")}
    assert marks == {
        "StepER, 3B": ["not measured", "yes"],
        "StepER, 0.5B": ["not measured", "yes"],
        "teacher": ["none right", ""],
    }
    assert "of 20 questions, asked one after the other" in text
    svg = figure(made)
    assert "seconds a question" in svg
    assert "teacher, IRCoT, chain" in svg


def test_the_validity_of_chains_stands_in_percent_and_in_steps():
    valid = {name: spread(0.72) for name in ("sub_answers", "grounded")}
    valid |= {"started": spread(0.9), "deviation": spread(1.25)}
    given = row("StepER")
    text = markdown(outcome("table4", replace(given, scores={**given.scores, **valid})))
    assert cells(text, "hotpotqa")[3:] == [
        *("55.7", "72", "87.9", "\N{EN DASH}", "\N{EN DASH}"),
        *("61.0 ±1.0 [55.0, 67.0]", "72.0 ±1.0", "90.0 ±1.0", "1.25 ±0.01", "72.0 ±1.0"),
    ]
    assert "right start: the share" in text


def test_recall_and_duplicates_are_shares_as_in_the_paper():
    text = markdown(outcome("table7", row("StepER, S = 5")))
    assert cells(text, "hotpotqa")[3:] == [
        "61",
        "0.74",
        "0.26",
        "61.0 ±1.0 [55.0, 67.0]",
        "0.74 ±0.01",
        "0.26 ±0.01",
    ]


def test_accuracy_by_steps_counts_the_questions_of_each():
    groups = {
        "2": GroupScores(n=30, em=0.5, f1=0.5, acc=0.6, recall=None, mean_steps=2),
        "6": GroupScores(n=10, em=0.1, f1=0.1, acc=0.1, recall=None, mean_steps=6),
    }
    text = markdown(outcome("table6", row("StepER", **groups)))
    assert cells(text, "2") == ["2", "11", "36.4", "30", "60.0"]
    assert cells(text, "5") == ["5", "157", "51.6", "0", "\N{EN DASH}"]
    assert cells(text, "6")[3:] == ["10", "10.0"]
    assert "40 answers over all seeds; mean 3.00 steps" in text


def curves(seed: int) -> Curves:
    values = {"initialization": [1.0, 0.9], "expansion": [1.0, 0.6], "aggregation": [1.0, 1.5]}
    return Curves("steper", seed, [1, 40], values)


def test_sigma_is_shown_as_its_share_of_the_three():
    text = markdown(outcome("fig7", sigma={"miniature": [curves(0), curves(1)]}))
    assert cells(text, "at step") == ["at step", "1", "40"]
    assert cells(text, "aggregation") == ["aggregation", "0.333", "0.500"]
    assert "no sigma was learned" in markdown(outcome("fig7", sigma={"miniature": []}))


@pytest.mark.parametrize("name", ["fig3", "fig7"])
def test_a_figure_is_a_file_of_its_own_with_both_colour_schemes_and_a_key(name):
    made = outcome("fig3", row("Vanilla-KD"), row("StepER"))
    if name == "fig7":
        made = outcome("fig7", sigma={"miniature": [curves(0)]})
    svg = figure(made)
    assert svg is not None
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "prefers-color-scheme: dark" in svg
    assert ("aggregation" if name == "fig7" else "StepER") in svg
    assert figure(outcome("table2", row("uniform"))) is None
