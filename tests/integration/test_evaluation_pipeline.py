"""The evaluation on real Ray actors with a real engine on tiny models."""

import json

import pytest

from steper_ray.config import EngineConfig, EscalateConfig
from steper_ray.config.file import load_config
from steper_ray.core.errors import DataError, GenerationError, LockedError, ModelError
from steper_ray.core.locks import locked
from steper_ray.corpora import open_corpus
from steper_ray.evaluation.pipeline import EvalJob, evaluate, predict
from steper_ray.evaluation.scores import score_trajectories
from steper_ray.evaluation.store import job_files, read_trajectories
from steper_ray.evaluation.timing import time_jobs
from steper_ray.generation import open_generator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval import ensure_index
from steper_ray.schema import StopReason

pytestmark = pytest.mark.usefixtures("ray_cluster")

QUESTIONS = 5
BASE = [EvalJob("base", "miniature:base", unit) for unit in ("sentence", "chain")]
TEACHER = [EvalJob("teacher", "miniature:teacher", "chain")]
ALL_DOUBTED = EscalateConfig(engine=EngineConfig(model="miniature:teacher"), below=1.0)
ESCALATED = EvalJob("escalated", "miniature:base", "chain", (("escalate", ALL_DOUBTED),))


@pytest.fixture
def configure(tmp_path):
    """A config over a tiny test world of its own, apart from the training corpus."""

    def make(*overrides):
        corpus = "evaluate.corpus={kind: miniature, limit: 5, miniature: {worlds: 1, split: test}}"
        small = ("reasoning.max_steps=2", "sampling.max_tokens=12", "evaluate.chunk_size=2")
        return load_config(None, [f"run_dir={tmp_path / 'run'}", corpus, *small, *overrides])

    return make


async def run_directly(config, job, folder):
    """What the pipeline must come to: the same Reasoner, one question after another, in this process."""
    corpus = open_corpus(config.evaluate.corpus)
    retriever = ensure_index(corpus.passages(), config.retrieval, folder)
    generator = open_generator(config.engine.model_copy(update={"model": job.model}))
    settings = config.reasoning.model_copy(update={"unit": job.unit})
    reasoner = Reasoner(retriever, generator, settings, config.sampling, job.model)
    trajectories = [await reasoner.run(question) for question in corpus.questions()]
    await generator.close()
    return trajectories


def essence(trajectory):
    """All of a trajectory but its timings, and what follows the batch: cached tokens, last bits of probabilities."""
    steps = [
        (s.query, s.hits, s.reasoning, s.usage.prompt_tokens, s.usage.completion_tokens, s.duplicates)
        for s in trajectory.steps
    ]
    return trajectory.question, steps, trajectory.answer, trajectory.stop_reason, trajectory.source


async def test_the_pool_gives_the_scores_of_the_reasoner_run_directly(configure, tmp_path):
    config = configure()
    results = evaluate(config, [*BASE, *TEACHER, ESCALATED])
    assert {name: sorted(units) for name, units in results.items()} == {
        "base": ["chain", "sentence"],
        "teacher": ["chain"],
        "escalated": ["chain"],
    }
    for job in (BASE[0], TEACHER[0]):
        trajectories = await run_directly(config, job, tmp_path / "index")
        stored = list(read_trajectories(job_files(config.run_dir, job)))
        assert [essence(t) for t in stored] == [essence(t) for t in trajectories]
        assert results[job.name][job.unit] == score_trajectories(trajectories)
        assert results[job.name][job.unit].n == QUESTIONS
    # Who doubts every step lets the larger model write them all.
    chains = [
        [t.chain for t in read_trajectories(job_files(config.run_dir, job))] for job in (*TEACHER, ESCALATED)
    ]
    assert chains[0] == chains[1]
    wrote = results["escalated"]["chain"].larger_tokens
    assert 0 < wrote == results["teacher"]["chain"].completion_tokens


def test_a_rerun_starts_no_actor_and_gives_the_same_scores(configure, monkeypatch):
    config = configure()
    first = evaluate(config, BASE)
    files = list((config.run_dir / "eval").rglob("*.*"))
    written = [file.stat().st_mtime_ns for file in files]

    def fail(*_, **__):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr("steper_ray.rollouts.run._pass", fail)
    assert evaluate(config, BASE) == first
    assert [file.stat().st_mtime_ns for file in files] == written


def test_a_question_asked_alone_is_timed_once_and_what_was_measured_is_kept(configure, monkeypatch):
    config = configure("evaluate.timed_questions=3")
    jobs = [TEACHER[0], BASE[0]]
    first = time_jobs(config, jobs)
    for job, timing in first.items():
        assert timing.seconds.n == 3
        assert 0 < timing.seconds.low <= timing.seconds.mean
        assert timing.joules is None or timing.joules > 0
        (file,) = (config.run_dir / "eval" / "timing").glob(f"{job.name}-*.json")
        assert "check" in json.loads(file.read_text())
    # Both steps of up to twelve tokens.
    assert 2 <= first[jobs[0]].tokens <= 24
    with monkeypatch.context() as patch:
        patch.setattr("steper_ray.evaluation.timing.in_order", lambda *_: pytest.fail("nothing is missing"))
        assert time_jobs(config, jobs) == first
    again = configure("evaluate.timed_questions=2")
    assert time_jobs(again, jobs[:1])[jobs[0]].seconds.n == 2


def test_a_question_that_cannot_be_answered_is_not_timed(configure):
    config = configure("evaluate.timed_questions=1", "reasoning.max_question_chars=5")
    with pytest.raises(GenerationError, match=r"could not be timed: .*max_question_chars"):
        time_jobs(config, TEACHER)
    with pytest.raises(DataError, match="fewer than two questions to time"):
        time_jobs(configure("evaluate.corpus.limit=1"), TEACHER)


def test_predictions_are_the_evaluations_answers_and_questions_without_answers_are_asked_too(
    configure, monkeypatch, tmp_path
):
    config = configure()
    evaluate(config, BASE)
    with monkeypatch.context() as patch:
        patch.setattr("steper_ray.rollouts.run._pass", lambda *_, **__: pytest.fail("nothing is missing"))
        found = predict(config, BASE[0])
    (file,) = found.files
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    stored = list(read_trajectories(job_files(config.run_dir, BASE[0])))
    assert [(row["id"], row["answer"], tuple(row["chain"])) for row in rows] == [
        (trajectory.question.id, trajectory.answer, trajectory.chain) for trajectory in stored
    ]
    split = tmp_path / "test.jsonl"
    records = ({"_id": row["id"], "question": row["question"], "context": [["T", ["x."]]]} for row in rows)
    split.write_text("".join(json.dumps(record) + "\n" for record in records))
    bare = configure(f"evaluate.corpus={{questions: {split}}}")
    with pytest.raises(DataError, match=r"line 1: the question has no answer: `steper predict`"):
        evaluate(bare, BASE)
    again = predict(bare, BASE[0])
    assert (again.questions, [path.suffixes for path in again.files]) == (
        5,
        [[".jsonl"], [".hotpotqa", ".json"]],
    )
    assert json.loads(again.files[1].read_text())["answer"].keys() == {row["id"] for row in rows}


def test_only_what_is_missing_changed_or_damaged_is_made_again(configure):
    config = configure()
    first = evaluate(config, BASE)
    sentence, chain = (job_files(config.run_dir, job) for job in BASE)
    kept = {file: file.stat().st_mtime_ns for file in sentence.shards.iterdir()}
    lost, damaged = sorted(chain.shards.glob("*.parquet"))[:2]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-5])
    chain.scores.unlink()
    assert evaluate(config, BASE) == first
    assert lost.is_file()
    assert {file: file.stat().st_mtime_ns for file in sentence.shards.iterdir()} == kept
    before = json.loads(sentence.scores.read_text())["fingerprint"]
    evaluate(configure("reasoning.max_steps=1"), BASE[:1])
    assert json.loads(sentence.scores.read_text())["fingerprint"] != before


def test_a_question_that_fails_is_counted_as_wrong_and_the_others_go_on(configure):
    limit = max(len(q.text) for q in open_corpus(configure().evaluate.corpus).questions()) - 1
    scores = evaluate(configure(f"reasoning.max_question_chars={limit}"), BASE[:1])["base"]["sentence"]
    assert 1 <= scores.errors < QUESTIONS
    assert scores.stop_reasons[StopReason.REJECTED] == scores.errors


def test_a_second_evaluation_in_one_run_dir_is_refused_while_the_first_is_at_work(configure):
    config = configure()
    with (
        locked(config.run_dir, "evaluation"),
        pytest.raises(LockedError, match="another evaluation is at work"),
    ):
        evaluate(config, BASE)


def test_mistakes_are_named_before_anything_runs(configure, tmp_path):
    with pytest.raises(DataError, match="name at least one model"):
        evaluate(configure(), [])
    with pytest.raises(DataError, match=r"two evaluations would write .*base-chain\.json"):
        evaluate(configure(), [BASE[1], EvalJob("base", "miniature:teacher", "chain")])
    with pytest.raises(ModelError, match="no such folder"):
        evaluate(configure(), [EvalJob("x", str(tmp_path / "nothing"), "chain")])
