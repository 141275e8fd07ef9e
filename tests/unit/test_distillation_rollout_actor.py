"""What an actor makes of its shards, without Ray: questions that were given up, and scores that were left."""

import pytest
from distilled import question
from scripted import KeywordRetriever

from steper_ray.config.file import load_config
from steper_ray.distillation import rollout_actor
from steper_ray.distillation.engine_log import EngineLog
from steper_ray.distillation.rollout_actor import Job, RolloutActor, shard_row
from steper_ray.distillation.scores import ScoreStore
from steper_ray.distillation.shards import Shard, ShardStore
from steper_ray.schema import Passage, StopReason

PASSAGES = [Passage("1", "Alba", "Of Bo."), Passage("2", "Bo", "Of Cy."), Passage("3", "Cy", "Of Cem.")]
SHARD = Shard("abc", tuple(question(number) for number in (1, 2, 3)))


class Sure:
    """A verifier that is sure of every step of the trajectories it is asked about."""

    def __init__(self):
        self.asked = []

    async def scores(self, trajectory):
        self.asked.append(trajectory.id)
        return [1.0 for _ in trajectory.steps]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A build of the annotation teacher with a judge."""
    config = load_config(None, ["build.teacher=annotation"])
    monkeypatch.setattr(rollout_actor, "open_index", lambda *args: KeywordRetriever(PASSAGES))
    monkeypatch.setattr(rollout_actor, "open_verifiers", lambda *args: {"judge": Sure()})
    scores = {"judge": ScoreStore(tmp_path / "scores", "judge", {})}
    log = EngineLog(tmp_path / "engines", limit=4)
    return Job(config, "", tmp_path, "corpus", tmp_path, "identity", log, scores)


def killed(job, *keys):
    """Each of the keys killed two engines, alone."""
    for key in keys * 2:
        job.log.started()[0].asked(key, alone=True)


async def make(job):
    (row,) = (await RolloutActor(job)(shard_row(SHARD))).to_pylist()
    assert row["error"] is None
    store = ShardStore(job.shards, job.identity)
    scored = {score.question_id for score in job.scores["judge"].read(SHARD.id)}
    return store, store.read(SHARD.id), scored


async def test_a_question_that_was_given_up_is_a_row_of_its_own_that_says_how_to_have_it_asked_again(job):
    killed(job, "q2")
    store, (first, second, third), scored = await make(job)
    assert [t.stop_reason for t in (first, third)] == [StopReason.ANSWERED] * 2
    assert (second.question, second.stop_reason, second.steps) == (
        SHARD.questions[1],
        StopReason.GENERATOR_FAILED,
        (),
    )
    assert "engines died 2 times" in second.error
    file = job.shards / "shard-abc.parquet"
    assert file.name in second.error
    assert scored == {"q1", "q3"}

    job.log.clear()
    before = file.stat().st_mtime_ns
    await make(job)
    assert file.stat().st_mtime_ns == before
    file.unlink()
    assert store.manifest(SHARD.id) is None
    _, again, scored = await make(job)
    assert [t.stop_reason for t in again] == [StopReason.ANSWERED] * 3
    assert scored == {"q1", "q2", "q3"}


async def test_a_trajectory_that_kills_the_judge_has_no_scores_and_the_others_have_theirs(job):
    killed(job, "judge q2")
    _, found, _ = await make(job)
    assert [t.stop_reason for t in found] == [StopReason.ANSWERED] * 3
    scores = job.scores["judge"].read(SHARD.id)
    assert {(s.question_id, s.score) for s in scores} == {("q1", 1.0), ("q2", None), ("q3", 1.0)}
