"""The demo from worlds to report, with few questions and steps: every part of it runs, and a rerun repeats none."""

import json

import pytest

from steper_ray import stages
from steper_ray.config import DemoConfig
from steper_ray.config.file import load_config
from steper_ray.experiments.paper import Scale, run_paper
from steper_ray.recipes.demo import run_demo

pytestmark = pytest.mark.usefixtures("ray_cluster")
STUDENTS = DemoConfig().students
SMALL = [
    "corpus.miniature.worlds=3",
    "corpus.miniature.questions_per_world=4",
    "build.teacher=annotation",
    "train.epochs=1",
    "train.batch_examples=20",
    "demo.seeds=[0,1]",
    "demo.equal_steps_seeds=[0]",
    "evaluate.corpus.miniature.worlds=1",
    "evaluate.corpus.miniature.questions_per_world=3",
    "sampling.max_tokens=24",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("demo") / "miniature"
    config = load_config("jobs/configs/miniature.yaml", [*SMALL, f"run_dir={run_dir}"])
    return config, run_demo(config)


def test_the_results_have_every_model_in_both_units_between_0_and_1(demo):
    config, _ = demo
    models = json.loads((config.run_dir / "results.json").read_text())["models"]
    assert set(models) == {"base", *STUDENTS}  # annotations are no model that could be scored
    for units in models.values():
        assert set(units) == {"sentence", "chain"}
        for scores in units.values():
            assert {"em", "f1", "acc", "recall", "mean_steps"} <= set(scores)
            assert all(0 <= scores[key] <= 1 for key in ("em", "f1", "acc", "recall"))
            assert 1 <= scores["mean_steps"] <= 5


def test_vanilla_kd_is_trained_at_equal_epochs_and_at_equal_steps(demo):
    config, _ = demo
    steps = {
        student: sum(1 for _ in (config.run_dir / "training" / f"{student}-seed0" / "metrics.jsonl").open())
        for student in STUDENTS
    }
    assert steps["vanilla_kd_equal_steps"] == steps["steper"] > steps["vanilla_kd"]


def test_every_student_is_trained_and_scored_with_its_own_seeds(demo):
    _, results = demo
    seeds = {student: [seed.name for seed in results.models[student]["chain"].seeds] for student in STUDENTS}
    assert seeds == {
        "vanilla_kd": ["vanilla_kd-seed0", "vanilla_kd-seed1"],
        "vanilla_kd_equal_steps": ["vanilla_kd_equal_steps-seed0"],
        "steper": ["steper-seed0", "steper-seed1"],
    }


def test_tables_of_the_paper_take_what_the_demo_trained(demo):
    config, _ = demo
    root, said = config.run_dir.parent, list[str]()
    logs = sorted((config.run_dir / "training").glob("*/metrics.jsonl"))
    before = [log.stat().st_mtime_ns for log in logs]
    overrides = [*SMALL, f"run_dir={root}", "evaluate.timed_questions=1"]
    run_paper(
        ["table6", "table7", "fig6", "fig7"], Scale.mini, [], overrides, [], dry_run=False, say=said.append
    )
    table = (root / "paper" / "table7.md").read_text()
    assert table in said
    rows = [line for line in table.splitlines() if line.startswith("| miniature | ")]
    assert len(rows) == (4 * 2 + 1) + (
        3 * 2 + 2
    )  # scores: four rows in two units and one in one; comparisons
    assert "aggregation" in (root / "paper" / "fig7.svg").read_text()
    fig6 = (root / "paper" / "fig6.md").read_text()
    assert "of 1 questions, asked one after the other" in fig6
    assert [log.stat().st_mtime_ns for log in logs] == before
    assert sorted((config.run_dir / "training").glob("*/metrics.jsonl")) == logs


def test_the_report_stands_alone(demo):
    config, _ = demo
    page = (config.run_dir / "report.html").read_text()
    assert "steper" in page.lower()
    assert 'src="http' not in page
    assert '<link rel="stylesheet"' not in page


def test_the_terminal_shows_the_table_and_the_path_of_sigma(demo):
    config, _ = demo
    shown = stages.report(config.run_dir)
    assert "StepER" in shown
    assert "sigma at step" in shown
    assert "95 % interval" in shown


def test_the_last_student_is_compared_with_every_other_model_over_all_questions(demo):
    _, results = demo
    found = {(one.other, one.unit, one.metric) for one in results.comparisons}
    others = {"base", "vanilla_kd", "vanilla_kd_equal_steps"}
    assert found == {(o, u, m) for o in others for u in ("sentence", "chain") for m in ("em", "f1")}
    for one in results.comparisons:
        means = [getattr(results.models[name][one.unit], one.metric) for name in ("steper", one.other)]
        assert one.difference == pytest.approx(means[0] - means[1])
        assert (one.model, one.n) == ("steper", 3)


def test_a_rerun_trains_and_scores_nothing_again(demo):
    config, first = demo
    weights = {path: path.stat().st_mtime_ns for path in config.run_dir.rglob("model.safetensors")}
    assert len(weights) == 5
    again = run_demo(config)
    assert again.models == first.models
    assert {path: path.stat().st_mtime_ns for path in config.run_dir.rglob("model.safetensors")} == weights
