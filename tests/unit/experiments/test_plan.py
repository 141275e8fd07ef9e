"""Experiments: what they share, what each needs, and what the paper printed."""

from pathlib import Path

import pytest

from steper_ray.config import Config, TrainConfig
from steper_ray.config.file import load_config
from steper_ray.core.errors import SteperError
from steper_ray.experiments.paper import Scale, run_paper
from steper_ray.experiments.plan import STUDENTS, choose, experiments
from steper_ray.experiments.published import PUBLISHED
from steper_ray.experiments.run import Paper, Setting

KNOWN = experiments({"small": "a/b", "large": "c/d"}, ["first", "second"])
MINI = load_config("jobs/configs/miniature.yaml", ["demo.seeds=[0,1]"])


def paper(**configs: Config) -> Paper:
    return Paper(Path("/runs"), configs, {"small": "a/b", "large": "c/d"})


def chosen(data: str, *names: str) -> list[tuple]:
    return [(KNOWN[name], data) for name in names]


def test_experiments_share_their_students_and_evaluations():
    mini = paper(miniature=MINI)
    alone = [mini.students(chosen("miniature", name)) for name in ("table2", "fig3")]
    together = mini.students(chosen("miniature", "table2", "fig3", "table6", "fig7"))
    assert set(together) == {*alone[0], *alone[1]}
    assert len(together) == 7 * 2  # recipes x seeds: "steper" is in both
    jobs = mini.jobs(chosen("miniature", "table6", "fig7"))[Setting("miniature")]
    assert sorted(job.name for job in jobs) == [
        "steper-seed0",
        "steper-seed0",
        "steper-seed1",
        "steper-seed1",
    ]
    assert {job.unit for job in jobs} == {"sentence", "chain"}


@pytest.mark.parametrize("name", STUDENTS)
def test_every_recipe_is_a_valid_training(name):
    assert TrainConfig.model_validate(dict(STUDENTS[name]))


def test_a_row_is_asked_with_its_own_settings_under_a_name_of_its_own():
    jobs = paper(miniature=MINI).jobs(chosen("miniature", "table7"))[Setting("miniature")]
    assert len({(job.name, job.unit) for job in jobs}) == len(jobs)
    once = next(job for job in jobs if job.name.startswith("base"))
    assert (dict(once.reasoning), once.unit, once.model) == (
        {"max_steps": 1, "few_shot": True},
        "chain",
        "miniature:base",
    )
    three = next(job for job in jobs if job.name == "steper-seed0-max_steps_3")
    assert three.model == "/runs/miniature/models/steper-seed0"
    # S = 5 is the config's already: StepER is asked once for all tables.
    assert any(job.name == "steper-seed0" and not job.reasoning for job in jobs)


def test_a_teacher_of_annotations_is_no_row():
    annotated = load_config("jobs/configs/miniature.yaml", ["build.teacher=annotation"])
    labels = [
        [arm.label for arm in paper(miniature=c).arms(KNOWN["table1"], "miniature")]
        for c in (MINI, annotated)
    ]
    assert [label for label in labels[0] if label not in labels[1]] == [
        "teacher, no retrieval",
        "teacher, single-step RAG",
        "teacher, ITER-RETGEN",
        "teacher, IRCoT",
        "teacher, Self-Ask",
    ]


def test_students_of_another_framework_are_a_run_of_their_own():
    (setting,) = {
        student.setting for student in paper(miniature=MINI).students(chosen("miniature", "table3"))
    }
    config = paper(miniature=MINI).config(setting)
    assert (config.run_dir, config.reasoning.framework) == (Path("/runs/miniature-self_ask"), "self_ask")
    assert config.build.teacher == "annotation"  # the miniature's teacher knows IRCoT alone


def test_students_out_of_their_domain_are_asked_where_they_did_not_learn():
    both = paper(first=MINI, second=MINI)
    jobs = both.jobs([(KNOWN["fig5"], "second")])[Setting("second")]
    assert {job.name for job in jobs} >= {"first-steper-seed0", "second-steper-seed0"}
    assert {Path(job.model).parts[2] for job in jobs} == {"first", "second"}
    assert both.students([(KNOWN["fig5"], "second")]) == both.students([(KNOWN["fig5"], "first")])


def test_students_of_several_sizes_start_from_their_own_models():
    mini = paper(miniature=MINI)
    names = {student.name for student in mini.students(chosen("miniature", "fig4"))}
    assert names == {
        f"{r}-{s}-seed{n}" for r in ("steper", "vanilla_kd") for s in ("small", "large") for n in (0, 1)
    }
    models = {job.name: job.model for job in mini.jobs(chosen("miniature", "fig4"))[Setting("miniature")]}
    assert models["base-large-few_shot_True"] == "c/d"


def test_seconds_are_measured_of_students_of_all_sizes_or_of_the_one_there_is():
    assert [arm.label for arm in KNOWN["fig6"].arms][:2] == ["StepER, small", "StepER, large"]
    alone = experiments({}, [])["fig6"]
    assert [arm.label for arm in alone.arms] == ["StepER", "teacher, IRCoT", "teacher, Self-Ask"]
    assert alone.pairs == (("StepER", "teacher, IRCoT"),)


def test_every_published_row_is_a_row_of_its_experiment():
    known = experiments(dict.fromkeys(("0.5B", "1.5B", "3B", "7B"), "m"), ["2wiki", "hotpotqa", "musique"])
    for (name, data), rows in PUBLISHED.items():
        assert set(rows) <= {arm.label for arm in known[name].arms}, name
        assert data in known[name].datasets
    assert PUBLISHED["table1", "hotpotqa"]["StepER"] == {"em": 51.0, "f1": 62.8, "acc": 61.0}
    assert PUBLISHED["table2", "musique"]["uniform"] == {"acc": 33.58}
    assert PUBLISHED["fig5", "2wiki"]["StepER, learned on musique"] == {"acc": 51.4}
    assert PUBLISHED["fig4", "2wiki"]["IRCoT, 7B"] == {"acc": 47.8}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_compared_is_a_row(name):
    labels = {arm.label for arm in KNOWN[name].arms}
    assert {label for pair in KNOWN[name].pairs for label in pair} <= labels


def test_experiments_are_named_one_by_one_or_all_together():
    assert [one.name for one in choose(KNOWN, ["fig7", "table2", "fig7"])] == ["fig7", "table2"]
    without = experiments({}, [])
    assert [one.name for one in choose(without, ["all"])] == [
        name for name in KNOWN if name not in ("fig4", "fig5")
    ]
    with pytest.raises(SteperError, match="no experiment 'table9': there are table1"):
        choose(KNOWN, ["table9"])
    with pytest.raises(SteperError, match="name an experiment: table1"):
        choose(KNOWN, [])
    with pytest.raises(SteperError, match="name each with --student"):
        choose(without, ["fig4"])


def test_a_dry_run_says_what_it_would_do_and_which_differences_it_could_see(tmp_path):
    said = []
    run_paper(["table2"], Scale.mini, [], [f"run_dir={tmp_path}"], [], dry_run=True, say=said.append)
    assert (
        "trainings    12: steper_uniform, steper_weight_first, steper_weight_last, steper; seeds 0, 1, 2"
        in said[0]
    )
    assert "200 questions in 200 clusters: of two models a difference of 9.9 points" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_data_sets_that_are_not_here_are_named_in_a_dry_run_and_two_of_one_name_refused(tmp_path):
    said = []
    run_paper(["table1"], Scale.full, [], [], [], dry_run=True, say=said.append)
    assert "a test set that is not here (data/2wiki/dev.json: no such file" in said[0]
    files = [tmp_path / folder / "mine.yaml" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("{}")
    with pytest.raises(SteperError, match="two data sets have one name"):
        run_paper(["table1"], Scale.full, files, [], [], dry_run=True, say=said.append)
    with pytest.raises(SteperError, match="give NAME=FOLDER"):
        run_paper(["fig4"], Scale.mini, [], [], ["only-a-name"], dry_run=True, say=said.append)
