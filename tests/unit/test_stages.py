"""The public API and the names of students and results."""

import json
import subprocess
import sys

import pytest
from distilled import trajectory
from training_examples import gold_examples, write_trajectories

import steper_ray
from steper_ray import stages
from steper_ray.config.file import load_config
from steper_ray.core.errors import DataError, SteperError, TrainingError
from steper_ray.core.sums import PROVENANCE, write_sums
from steper_ray.evaluation.scores import score_trajectories
from steper_ray.evaluation.store import EvalJob, job_files, refuse_other, save_scores


def test_the_package_is_imported_without_torch_and_ray_and_names_its_api():
    code = "import sys, steper_ray; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
    for name in steper_ray.__all__:
        assert getattr(steper_ray, name)
    with pytest.raises(AttributeError, match="nothing"):
        steper_ray.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("runs/a/models/steper", ("steper", "runs/a/models/steper")),
        ("mine=runs/a/models/steper", ("mine", "runs/a/models/steper")),
        ("org/model", ("model", "org/model")),
    ],
)
def test_a_model_is_named_by_hand_or_by_the_last_part_of_its_path(given, named):
    assert stages.named_model(given) == named


@pytest.mark.parametrize("given", ["=runs/a", "mine="])
def test_half_a_name_is_refused(given):
    with pytest.raises(SteperError, match="NAME=PATH"):
        stages.named_model(given)


def test_scores_of_another_model_are_not_overwritten(tmp_path):
    config = load_config(None, [f"run_dir={tmp_path}", "evaluate.units=[chain]"])
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "mine-chain.json").write_text(json.dumps({"model": "a/student"}))
    with pytest.raises(DataError, match=r"scores of 'a/student'.*--model NAME=b/student"):
        stages.evaluate(config, ["mine=b/student"])


def test_the_same_model_by_another_spelling_of_its_path_is_the_same(tmp_path, monkeypatch):
    (tmp_path / "student").mkdir()
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "mine-chain.json").write_text(json.dumps({"model": str(tmp_path / "student")}))
    monkeypatch.chdir(tmp_path)
    refuse_other(tmp_path, [EvalJob("mine", "./student", "chain")])


def test_a_student_of_another_training_is_not_overwritten(tmp_path, monkeypatch):
    kept = tmp_path / "data" / "kept"
    kept.mkdir(parents=True)
    write_trajectories(kept / "part-0.parquet", gold_examples())
    config = load_config(None, [f"run_dir={tmp_path}"])
    folder = tmp_path / "models" / "steper"
    folder.mkdir(parents=True)
    (folder / PROVENANCE).write_text(json.dumps({"fingerprint": "another"}))
    write_sums(folder)
    with pytest.raises(
        TrainingError, match=r"models/steper holds a student of another training.*train\.name"
    ):
        stages.train(config)
    monkeypatch.setattr("steper_ray.training.trainer.train", lambda jobs, **_: jobs)
    monkeypatch.setattr(stages, "connect", lambda _: None)
    assert stages.train(config, replace=True).name == "steper"
    assert stages.model_folder(load_config(None, [f"run_dir={tmp_path}", "train.name=two"])).name == "two"


def test_a_model_whose_folder_moved_is_the_same_until_its_files_change(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "config.json").write_text("{}")
    job = EvalJob("mine", str(before), "chain")
    made = score_trajectories([trajectory()])
    (tmp_path / "eval").mkdir()
    save_scores(job_files(tmp_path, job), job, "print", [], made)
    before.rename(after)
    refuse_other(tmp_path, [EvalJob("mine", str(after), "chain")])
    (after / "config.json").write_text("{ }")
    with pytest.raises(DataError, match=r"scores of '.*before'"):
        refuse_other(tmp_path, [EvalJob("mine", str(after), "chain")])
