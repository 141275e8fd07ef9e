"""Results on disk: whole or not there, and only for what they were made from."""

import json
import shutil

import pytest

from steper_ray.config.file import load_config
from steper_ray.errors import DataError
from steper_ray.evaluation.schedule import EvalJob
from steper_ray.evaluation.scores import score_trajectories
from steper_ray.evaluation.store import (
    commit,
    job_files,
    job_fingerprint,
    load_scores,
    model_fingerprint,
    pick_samples,
    questions_fingerprint,
    read_trajectories,
)
from steper_ray.models import ASSETS
from steper_ray.schema import Hit, Passage, Question, Step, StopReason, Trajectory

JOB = EvalJob("steper-0", "some/model", "chain")


def trajectory(number, hops=2):
    question = Question(f"q{number}", "Where?", ("Cem",), ("p",), hops=hops, dataset="miniature")
    step = Step(1, "Where?", (Hit(Passage("p", "Bo", "Bo was born in Cem."), 1.5),), "So the answer is: Cem.")
    return Trajectory(question, "ircot", (step,), "Cem", StopReason.ANSWERED, source="m")


@pytest.fixture
def committed(tmp_path):
    trajectories = [trajectory(1), trajectory(2), trajectory(3, hops=3)]
    scores = score_trajectories(trajectories, [0, 0, 0])
    files = job_files(tmp_path, JOB)
    commit(files, JOB, "print", scores, trajectories)
    return files, scores, trajectories


def test_scores_and_trajectories_are_read_back_equal(committed):
    files, scores, trajectories = committed
    assert load_scores(files, "print") == scores
    assert read_trajectories(files.trajectories) == trajectories


def test_another_fingerprint_is_not_done(committed):
    files, _, _ = committed
    assert load_scores(files, "other") is None


@pytest.mark.parametrize("lost", ["scores", "trajectories"])
def test_a_job_without_one_of_its_files_is_not_done(committed, lost):
    files, _, _ = committed
    getattr(files, lost).unlink()
    assert load_scores(files, "print") is None


def test_a_damaged_result_names_its_file_and_the_fix(committed):
    files, _, _ = committed
    files.scores.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"steper-0-chain\.json: not a result .* delete it"):
        load_scores(files, "print")
    files.scores.write_text(json.dumps({"fingerprint": "print", "scores": {"em": 1}}), encoding="utf-8")
    with pytest.raises(DataError, match=r"steper-0-chain\.json"):
        load_scores(files, "print")


def test_nothing_partial_is_left_behind(committed):
    files, _, _ = committed
    assert sorted(path.name for path in files.scores.parent.iterdir()) == [
        "steper-0-chain.json",
        "steper-0-chain.parquet",
    ]


def test_a_name_cannot_leave_the_folder(tmp_path):
    files = job_files(tmp_path, EvalJob("../../etc/x", "m", "chain"))
    assert files.scores.parent == tmp_path / "eval"


def test_samples_are_the_first_question_of_each_number_of_hops(committed, tmp_path):
    samples = pick_samples(tmp_path, {"steper": "steper-0"}, ["chain"])
    assert [one["trajectory"]["question"]["id"] for one in samples] == ["q1", "q3"]
    assert samples[0]["model"] == "steper"
    assert samples[0]["scores"] == {"em": 1, "f1": 1, "acc": 1}


def test_missing_trajectories_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no-chain\.parquet: no trajectories can be read"):
        pick_samples(tmp_path, {"steper": "no"}, ["chain"])


@pytest.mark.parametrize(
    "override",
    [
        "reasoning.max_steps=3",
        "reasoning.few_shot=true",
        "reasoning.max_passage_chars=500",
        "reasoning.long_passages=leave_out",
        "sampling.temperature=0.5",
        "retrieval.k1=0.9",
        "engine.max_model_len=512",
        "engine.kind=vllm",
    ],
)
def test_what_changes_scores_changes_the_fingerprint(override):
    def of(config):
        return job_fingerprint(config, "chain", model="m", questions="q")

    assert of(load_config(None, [override])) != of(load_config())


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "evaluate.engines=7",
        "engine.max_batch=3",
        "train.lr=0.1",
        "retrieval.index_dir=x",
    ],
)
def test_what_cannot_change_scores_keeps_the_fingerprint(override):
    def of(config):
        return job_fingerprint(config, "chain", model="m", questions="q")

    assert of(load_config(None, [override])) == of(load_config())


def test_model_questions_and_unit_are_part_of_the_fingerprint():
    config = load_config()
    prints = {
        job_fingerprint(config, unit, model=model, questions=questions)
        for unit in ("chain", "sentence")
        for model in "ab"
        for questions in "cd"
    }
    assert len(prints) == 8


def test_a_model_is_known_by_its_bytes_and_not_by_its_place(tmp_path):
    config = load_config()
    copy = tmp_path / "copy"
    shutil.copytree(ASSETS / "base", copy)
    assert model_fingerprint(config, str(copy)) == model_fingerprint(config, "miniature:base")
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert model_fingerprint(config, str(copy)) != model_fingerprint(config, "miniature:base")


def test_questions_are_known_by_passages_and_text():
    one, two = trajectory(1).question, trajectory(2).question
    assert questions_fingerprint("c", [one]) != questions_fingerprint("c", [two])
    assert questions_fingerprint("c", [one]) != questions_fingerprint("d", [one])
