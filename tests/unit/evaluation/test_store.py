"""Results on disk: scores that are checked, counted from verified shards, and only for what they were made from."""

import json

import pytest
from distilled import rollout_set
from distilled import trajectory as distilled

from steper_ray.config.file import load_config
from steper_ray.core.answers import Score
from steper_ray.core.errors import DataError
from steper_ray.evaluation.pipeline import spec_of
from steper_ray.evaluation.scores import score_trajectories
from steper_ray.evaluation.store import (
    EvalJob,
    job_files,
    load_scores,
    pick_samples,
    read_trajectories,
    save_scores,
    set_fingerprint,
)
from steper_ray.rollouts.questions import write_questions
from steper_ray.rollouts.shards import DamagedShardError
from steper_ray.rollouts.sources import Source

JOB = EvalJob("steper-0", "some/model", "chain")


@pytest.fixture
def saved(tmp_path):
    trajectories = [distilled(1), distilled(2), distilled(3, hops=3)]
    found = rollout_set(tmp_path, trajectories)
    files = job_files(tmp_path, JOB)
    found.spec.folder.rename(files.shards.parent.mkdir() or files.shards)
    scores = score_trajectories(trajectories)
    save_scores(files, JOB, "print", found.shards, scores)
    return files, scores, trajectories


def test_scores_and_trajectories_are_read_back_equal(saved):
    files, scores, trajectories = saved
    assert load_scores(files, "print") == scores
    assert list(read_trajectories(files)) == trajectories
    assert sorted(path.name for path in files.scores.parent.iterdir()) == [
        "steper-0-chain",
        "steper-0-chain.json",
    ]


def test_scores_of_another_fingerprint_edited_ones_and_lost_ones_are_counted_again(saved):
    files, scores, _ = saved
    assert load_scores(files, "other") is None
    text = files.scores.read_text()
    em = json.dumps(scores.em)
    assert f'"em": {em}' in text
    files.scores.write_text(text.replace(f'"em": {em}', '"em": 0.987'))
    assert load_scores(files, "print") is None
    for damaged in ("{", "[]", "{}"):
        files.scores.write_text(damaged)
        assert load_scores(files, "print") is None
    files.scores.unlink()
    assert load_scores(files, "print") is None


def test_a_damaged_shard_is_named_and_never_shown(saved):
    files, _, _ = saved
    shard = next(files.shards.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DamagedShardError, match=shard.name):
        list(read_trajectories(files))


def test_a_name_cannot_leave_the_folder(tmp_path):
    files = job_files(tmp_path, EvalJob("../../etc/x", "m", "chain"))
    assert files.scores.parent == files.shards.parent == tmp_path / "eval"


def test_samples_are_the_first_question_of_each_number_of_hops(saved, tmp_path):
    samples = pick_samples(tmp_path, {"steper": "steper-0"}, ["chain"])
    assert [one.trajectory.question.id for one in samples] == ["q1", "q3"]
    assert samples[0].model == "steper"
    assert samples[0].scores == Score(1.0, 1.0, 1.0, 1.0)


def test_missing_results_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no-chain\.json: no result of an evaluation here"):
        pick_samples(tmp_path, {"steper": "no"}, ["chain"])


@pytest.fixture
def fingerprint(tmp_path):
    """Of an evaluation with these settings, before anything is asked."""

    def of(*overrides, job=JOB, numbers=(1, 2), corpus="c"):
        config = load_config(
            None, [f"run_dir={tmp_path}", "engine.kind=openai", "engine.url=http://x/v1", *overrides]
        )
        questions = write_questions(tmp_path / "questions", [distilled(n).question for n in numbers], 2)
        found = rollout_set(tmp_path / "other", [distilled(1)])
        spec = spec_of(config, job, Source(questions, tmp_path, corpus))
        return set_fingerprint(type(found)(spec, questions))

    return of


@pytest.mark.parametrize(
    "override",
    [
        "reasoning.max_steps=3",
        "reasoning.few_shot=true",
        "reasoning.max_passage_chars=500",
        "reasoning.long_passages=leave_out",
        "reasoning.confidence=0.7",
        "sampling.temperature=0.5",
        "retrieval.k1=0.9",
        "engine.max_model_len=512",
        "engine.url=http://y/v1",
    ],
)
def test_what_changes_scores_changes_the_fingerprint(fingerprint, override):
    assert fingerprint(override) != fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "evaluate.engines=7",
        "evaluate.max_failed=1",
        "engine.max_batch=3",
        "train.lr=0.1",
        "retrieval.index_dir=x",
    ],
)
def test_what_cannot_change_scores_keeps_the_fingerprint(fingerprint, override):
    assert fingerprint(override) == fingerprint()


def test_model_questions_corpus_and_unit_are_part_of_the_fingerprint(fingerprint):
    found = {
        fingerprint(job=EvalJob("n", model, unit), numbers=numbers, corpus=corpus)
        for unit in ("chain", "sentence")
        for model in "ab"
        for numbers in ((1, 2), (1, 3))
        for corpus in "cd"
    }
    assert len(found) == 16
