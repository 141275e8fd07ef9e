"""The results document, the page and the table: complete, escaped, and content with what is missing."""

import json
import re
from html.parser import HTMLParser
from math import sqrt

import pytest

from steper_ray import stages
from steper_ray.core.errors import DataError
from steper_ray.core.fingerprints import digest
from steper_ray.evaluation.curves import shares_of, sigma_optimum
from steper_ray.evaluation.figures import figures
from steper_ray.evaluation.report import format_sigma, format_table, render, write_report
from steper_ray.evaluation.results import (
    Sample,
    TrainingLog,
    assemble_results,
    load_results,
    read_metrics,
    save_results,
    thin,
)
from steper_ray.evaluation.scores import judge, score_trajectories
from steper_ray.schema import Hit, Passage, Question, Step, StopReason, Trajectory

TASKS = ("initialization", "expansion", "aggregation")
EVIL = '<script>alert("x")</script> & $a^2$'


def trajectory(right, *, hops=2, text="Where?", passage="Bo was born in Cem.", error=None):
    question = Question("q", text, ("Cem",), ("p",), hops=hops, dataset="miniature")
    hit = Hit(Passage("p", passage, passage), 1.0)
    step = Step(1, text, (hit,), f"So the answer is: {'Cem' if right else 'Dor'}.")
    reason = StopReason.GENERATOR_FAILED if error else StopReason.ANSWERED
    return Trajectory(question, "ircot", (step,), "Cem" if right else "Dor", reason, error)


def unfolded(model, unit, one):
    return Sample(model, unit, judge(one), one)


def scores(right, of=4):
    return score_trajectories([trajectory(n < right, hops=2 + n % 2) for n in range(of)])


def training(model, seed, steps=30, sigma=True):
    records = [
        {
            "step": step,
            "loss": 1.0,
            "losses": {task: 1 / step if sigma or task == "aggregation" else None for task in TASKS},
            "sigma": {"initialization": 1.0, "expansion": 0.5, "aggregation": 0.5} if sigma else None,
        }
        for step in range(1, steps + 1)
    ]
    return TrainingLog(model, seed, records)


@pytest.fixture(scope="module")
def results():
    evaluations = {
        "base": {"sentence": scores(0), "chain": scores(0)},
        "steper-0": {"sentence": scores(2), "chain": scores(2)},
        "steper-1": {"sentence": scores(3), "chain": scores(2)},
        "teacher": {"sentence": scores(4), "chain": scores(4)},
    }
    return assemble_results(
        evaluations,
        {"base": ["base"], "steper": ["steper-0", "steper-1"], "teacher": ["teacher"]},
        trainings=[training("vanilla_kd", 0, sigma=False), training("steper", 0), training("steper", 1)],
        samples=[unfolded("steper", "chain", trajectory(False))],
        data={"kept": 12345, "dropped": {"wrong": 3}},
        config={"run_dir": "runs/x"},
        provenance={"versions": {"torch": "2.13.0"}},
    )


def test_each_model_has_mean_spread_and_seeds_in_each_unit(results):
    steper = results.models["steper"]["sentence"]
    assert steper.em == 0.625
    assert (steper.spread["em"].min, steper.spread["em"].max) == (0.5, 0.75)
    assert [seed.name for seed in steper.seeds] == ["steper-0", "steper-1"]
    assert list(results.models) == ["base", "steper", "teacher"]
    for units in results.models.values():
        for unit in units.values():
            assert all(0 <= getattr(unit, key) <= 1 for key in ("em", "f1", "acc", "recall"))
            assert unit.mean_steps == 1


def test_hops_of_seeds_are_put_together(results):
    hops = results.models["steper"]["sentence"].by_hops
    # seed 0 has questions 0, 1 right, seed 1 has 0, 1, 2: of the two-hop ones (0, 2) 1 of 2 and 2 of 2
    assert hops["2"].em == 0.75
    assert hops["3"].em == 0.5
    assert hops["2"].n == 4


def test_sigma_is_given_raw_and_as_its_share_of_the_three(results):
    assert [(curve.model, curve.seed) for curve in results.sigma] == [("steper", 0), ("steper", 1)]
    curve = results.sigma[0]
    assert curve.values["initialization"][-1] == 1.0
    shares = shares_of(curve).values
    assert shares["initialization"][-1] == 0.5
    assert shares["expansion"][-1] == 0.25


def test_the_document_survives_its_file(results, tmp_path):
    save_results(tmp_path, results)
    found = load_results(tmp_path)
    assert (found.models, found.samples[0].trajectory) == (results.models, results.samples[0].trajectory)
    assert render(found) == render(results)


def test_long_curves_are_thinned_to_their_ends():
    assert thin(range(1000), 5) == [0, 250, 500, 749, 999]
    assert thin([1, 2], 5) == [1, 2]


def test_metrics_are_read_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "asked": "a\u2028b\x85c"}\n{"step": 2}\n', encoding="utf-8")
    records = [{"step": 1, "asked": "a\u2028b\x85c"}, {"step": 2}]
    assert read_metrics(path, "steper", 3) == TrainingLog("steper", 3, records, [])
    path.write_text('{"step": 1}\n{"st\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: damaged"):
        read_metrics(path, "steper", 3)


def test_the_table_has_each_model_in_each_unit_with_its_spread(results):
    lines = format_table(results).splitlines()
    rows = {tuple(line.split()[:2]): line for line in lines}
    assert {("Base", "sentence"), ("StepER", "chain"), ("Teacher", "chain")} <= rows.keys()
    assert "62.5 ±17.7" in rows["StepER", "sentence"]
    assert "±" not in rows["Base", "sentence"]


def test_the_path_of_sigma_is_shown_from_its_first_step_to_its_last(results):
    lines = format_sigma(results).splitlines()
    steps, values = lines[0].split(), {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert steps[:3] == ["sigma", "at", "step"]
    assert (steps[3], steps[-1]) == ("1", "30")
    assert set(values["initialization"]) == {"1.000"}
    assert set(values["aggregation"]) == {"0.500"}
    assert len(values["expansion"]) == len(steps) - 3
    assert format_sigma(assemble_results({"m": {"chain": scores(1)}}, {"m": ["m"]})) == ""


def test_sigma_stands_over_the_square_root_of_its_smoothed_loss(results):
    # A tenth of 30 steps: the mean of three, of the losses 1 / step; the other student's are not looked at.
    middle, last = sqrt((1 / 15 + 1 / 16 + 1 / 17) / 3), sqrt((1 / 29 + 1 / 30) / 2)
    optimum = sigma_optimum(results)
    assert set(optimum) == set(TASKS)
    for roots in optimum.values():
        assert len(roots) == 30
        assert (roots[15], roots[-1]) == pytest.approx((middle, last))
    lines = format_sigma(results).splitlines()
    for task in TASKS:
        (at,) = (number for number, line in enumerate(lines) if line.split()[0] == task)
        assert lines[at + 1].split()[:4] == ["\N{SQUARE ROOT}", "of", "its", "loss"]
        assert lines[at + 1].split()[-1] == f"{last:.3f}"


def test_the_square_roots_of_the_losses_are_dashed_lines_beside_sigma(results):
    def dashed(document):
        (shown,) = (figure for figure in figures(document) if figure.id == "sigma")
        return shown.svg.count("stroke-dasharray")

    assert dashed(results) == len(TASKS)
    uneven = [training("steper", 0, steps=3), training("steper", 1, steps=5)]
    assert dashed(assemble_results({}, {}, trainings=uneven)) == 0


def test_an_ability_without_a_loss_has_no_square_root():
    log = training("steper", 0, steps=4)
    records = [{**one, "losses": {**one["losses"], "expansion": None}} for one in log.records]
    document = assemble_results({}, {}, trainings=[TrainingLog("steper", 0, records)])
    assert sigma_optimum(document)["expansion"] == [None] * 4
    assert "\N{EN DASH}" in format_sigma(document)
    assert 'id="sigma"' in render(document)


def test_the_table_of_one_model_and_unit_speaks_of_no_seeds():
    table = format_table(assemble_results({"m": {"chain": scores(1)}}, {"m": ["m"]}))
    assert "25.0" in table
    assert "±" not in table


def test_an_unknown_recall_is_a_dash_and_not_a_zero():
    bare = Trajectory(Question("q", "?", ("Cem",)), "ircot", (), "Cem", StopReason.ANSWERED)
    results = assemble_results({"m": {"chain": score_trajectories([bare])}}, {"m": ["m"]})
    assert results.models["m"]["chain"].recall is None
    assert "\N{EN DASH}" in format_table(results)
    assert "What retrieval found" not in render(results)


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._style = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data):
        if not self._style:
            self.text.append(data)


def test_the_page_shows_every_part(results, tmp_path):
    path = write_report(results, tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section" and "id" in attrs]
    assert ids == ["scores", "hops", "recall", "sigma", "loss", "endings", "steps", "samples", "provenance"]
    text = " ".join(page.text)
    for part in ("StepER", "Teacher", "62.5", "So the answer is: Dor.", "12,345", "dropped.wrong", "2.13.0"):
        assert part in text, part
    assert sum(tag == "svg" for tag, _ in page.tags) == 5
    assert list(path.parent.iterdir()) == [path]


def test_the_page_loads_nothing_from_outside(results):
    html = render(results)
    page = Page(html)
    outside = [(tag, attrs) for tag, attrs in page.tags if tag in ("script", "link", "img", "iframe")]
    assert outside == []
    references = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
    assert all(reference.startswith("#") for reference in references)
    assert re.findall(r"@import|url\((?!#)", html) == []


def test_everything_from_data_is_escaped(results):
    wild = trajectory(True, text=EVIL, passage=EVIL, error=EVIL)
    evil = assemble_results(
        {EVIL: {EVIL: scores(1)}, "other": {EVIL: scores(2)}},
        {EVIL: [EVIL], "other": ["other"]},
        trainings=[TrainingLog(EVIL, 0, training("m", 0).records)],
        samples=[unfolded(EVIL, EVIL, wild)],
        data={EVIL: EVIL},
        config={EVIL: EVIL},
        provenance={"title": EVIL},
    )
    html = render(evil)
    page = Page(html)
    assert "script" not in [tag for tag, _ in page.tags]
    assert "<script" not in html
    shown = [text for text in page.text if EVIL in text]
    assert len(shown) > 10  # title, table, figures, sample, provenance: shown as it was written


def test_missing_parts_are_left_out():
    html = render(assemble_results({"m": {"chain": scores(1)}}, {"m": ["m"]}))
    page = Page(html)
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section" and "id" in attrs]
    assert ids == ["hops", "recall", "endings", "steps"]


def watched(seed):
    """A training that was looked at, asked two rounds of questions, and failed in a third."""
    losses = dict.fromkeys(TASKS, 0.5)
    records = [
        {"step": step, "loss": 1.0, "losses": losses, "sigma": None, "lr": 1 / step, "grad_norm": 2.0 * step}
        | (
            {"validation": {"loss": 3 / step, "losses": losses | {"expansion": None}}}
            if step % 5 == 0
            else {}
        )
        for step in range(1, 21)
    ]
    scores = {"n": 3, "f1": 0.5, "mean_steps": 2.0}
    answers = [
        {"step": 10, "em": 0.5} | scores,
        {"step": 5, "em": 0.25} | scores,
        {"step": 20, "error": "no"},
    ]
    return TrainingLog("steper", seed, records, answers)


def test_a_training_that_was_watched_shows_validation_questions_rate_and_gradient():
    results = assemble_results({}, {}, trainings=[watched(0), watched(1)])
    assert results.validation[0].steps == [5, 10, 15, 20]
    assert results.validation[0].values["expansion"] == [None] * 4
    assert (results.questions[0].steps, results.questions[0].values["em"]) == (
        [5, 10],
        [0.25, 0.5],
    )
    assert results.optimiser[1].values["grad_norm"] == [2.0 * step for step in range(1, 21)]
    page = Page(render(results))
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section" and "id" in attrs]
    assert ids == ["loss", "validation", "questions", "optimiser"]
    text = " ".join(page.text)
    for part in ("2 trainings", "20 optimiser steps", "3 held-out questions", "norm of the gradient"):
        assert part in text, part
    assert "steps per" not in text  # of the table, which there is not
    assert format_table(results) == ""


def test_results_of_another_form_are_refused_with_the_fix(results, tmp_path):
    save_results(tmp_path, results)
    path = tmp_path / "results.json"
    old = json.loads(path.read_text())
    del old["optimiser"], old["check"]
    path.write_text(json.dumps({**old, "check": digest(old)}))
    with pytest.raises(DataError, match=r"results\.json: .*Run the command that wrote it again"):
        load_results(tmp_path)


def test_a_run_that_was_only_trained_has_a_report_of_its_logs(tmp_path):
    with pytest.raises(DataError, match="neither results nor a training here"):
        stages.report(tmp_path)
    folder = tmp_path / "training" / "steper"
    folder.mkdir(parents=True)
    log = training("steper", 0)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log.records))
    (folder / "validation.jsonl").write_text(json.dumps(watched(0).answers[0]) + "\n")
    assert "sigma at step" in stages.report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert 'id="sigma"' in page
    assert 'id="questions"' in page
    assert 'id="endings"' not in page


def test_seeds_of_different_lengths_have_no_mean_but_are_drawn():
    results = assemble_results(
        {"m": {"chain": scores(1)}},
        {"m": ["m"]},
        trainings=[training("steper", 0, steps=3), training("steper", 1, steps=5)],
    )
    assert 'id="sigma"' in render(results)


def test_of_a_long_list_the_page_tells_the_length_alone():
    data = {"shards": [f"shard-{number}" for number in range(1000)], "kinds": ["a", "b"]}
    html = render(assemble_results({"m": {"chain": scores(1)}}, {"m": ["m"]}, data=data))
    assert "1,000 entries" in html
    assert "shard-7" not in html
    assert "a, b" in html


def test_errors_are_told_in_the_page():
    failed = score_trajectories([trajectory(True), trajectory(True, error="the prompt is too long")])
    results = assemble_results({"m": {"chain": failed}}, {"m": ["m"]})
    assert results.models["m"]["chain"].errors == 1
    assert '<td class="bad">1</td>' in render(results)


def test_the_best_of_a_column_is_marked_and_the_teacher_is_no_competitor(results):
    best = re.findall(r'<td class="[^"]*best[^"]*"[^>]*><span class="value">([^<]*)', render(results))
    steper = ["62.5"] * 4 + ["100.0"] + ["50.0"] * 4 + ["100.0"]
    assert best == [
        "100.0",
        "100.0",
        *steper,
    ]  # the base shares the best recall; the teacher's 100.0 EM is not marked


def test_results_that_were_changed_are_never_unfolded(results, tmp_path):
    assert load_results(tmp_path) is None
    save_results(tmp_path, results)
    assert load_results(tmp_path) == results
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace("0.625", "0.925"))
    with pytest.raises(DataError, match=r"results\.json: changed since it was written"):
        load_results(tmp_path)
