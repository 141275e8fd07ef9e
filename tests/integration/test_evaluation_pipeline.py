"""The evaluation on real Ray actors with a real engine on tiny models."""

import json

import pytest

from steper_ray.config.file import load_config
from steper_ray.corpora import open_corpus
from steper_ray.errors import DataError, EngineDeadError, ModelError
from steper_ray.evaluation import pipeline
from steper_ray.evaluation.pipeline import EvalJob, evaluate
from steper_ray.evaluation.scores import score_trajectories
from steper_ray.evaluation.store import job_files, read_trajectories
from steper_ray.generation import open_generator
from steper_ray.reasoning import PassagesFound, Reasoner
from steper_ray.retrieval import ensure_index
from steper_ray.schema import StopReason

pytestmark = pytest.mark.usefixtures("ray_cluster")

QUESTIONS = 5
BASE = [EvalJob("base", "miniature:base", unit) for unit in ("sentence", "chain")]
TEACHER = [EvalJob("teacher", "miniature:teacher", "chain")]


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
    trajectories, repeats = [], []
    for question in corpus.questions():
        events = []
        trajectories.append(await reasoner.run(question, events.append))
        repeats.append(sum(e.duplicates for e in events if isinstance(e, PassagesFound)))
    await generator.close()
    return trajectories, repeats


def essence(trajectory):
    """All of a trajectory but its timings, and what follows the batch: cached tokens, last bits of probabilities."""
    steps = [
        (s.query, s.hits, s.reasoning, s.usage.prompt_tokens, s.usage.completion_tokens)
        for s in trajectory.steps
    ]
    return trajectory.question, steps, trajectory.answer, trajectory.stop_reason, trajectory.source


async def test_the_pool_gives_the_scores_of_the_reasoner_run_directly(configure, tmp_path):
    config = configure()
    results = evaluate(config, [*BASE, *TEACHER])
    assert {name: sorted(units) for name, units in results.items()} == {
        "base": ["chain", "sentence"],
        "teacher": ["chain"],
    }
    for job in (BASE[0], TEACHER[0]):
        trajectories, repeats = await run_directly(config, job, tmp_path / "index")
        stored = read_trajectories(job_files(config.run_dir, job).trajectories)
        assert [essence(t) for t in stored] == [essence(t) for t in trajectories]
        assert results[job.name][job.unit] == score_trajectories(trajectories, repeats)
        assert results[job.name][job.unit].n == QUESTIONS


def test_a_rerun_starts_no_actor_and_gives_the_same_scores(configure, monkeypatch):
    config = configure()
    first = evaluate(config, BASE)
    files = [job_files(config.run_dir, job).scores for job in BASE]
    written = [file.stat().st_mtime_ns for file in files]

    def fail(*_):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(pipeline, "_run", fail)
    assert evaluate(config, BASE) == first
    assert [file.stat().st_mtime_ns for file in files] == written


def test_only_what_is_missing_or_changed_is_made_again(configure):
    config = configure()
    evaluate(config, BASE)
    sentence, chain = (job_files(config.run_dir, job).scores for job in BASE)
    kept = sentence.stat().st_mtime_ns
    chain.unlink()
    evaluate(config, BASE)
    assert chain.is_file()
    assert sentence.stat().st_mtime_ns == kept
    before = json.loads(sentence.read_text())["fingerprint"]
    evaluate(configure("reasoning.max_steps=1"), BASE[:1])
    assert json.loads(sentence.read_text())["fingerprint"] != before


def test_a_question_that_fails_is_counted_as_wrong_and_the_others_go_on(configure):
    limit = max(len(q.text) for q in open_corpus(configure().evaluate.corpus).questions()) - 1
    scores = evaluate(configure(f"reasoning.max_question_chars={limit}"), BASE[:1])["base"]["sentence"]
    assert 1 <= scores.errors < QUESTIONS
    assert scores.stop_reasons[StopReason.REJECTED] == scores.errors


def test_an_engine_that_dies_is_replaced_and_its_chunk_is_done_again(configure, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "_Evaluator", dying(tmp_path, deaths=1))
    scores = evaluate(configure("evaluate.engines=1"), BASE[:1])
    assert scores["base"]["sentence"].n == QUESTIONS
    assert len(list(tmp_path.glob("death*"))) == 1


def test_an_engine_that_always_dies_ends_the_evaluation_with_its_reason(configure, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "_Evaluator", dying(tmp_path, deaths=10))
    with pytest.raises(
        EngineDeadError, match=r"'base' \(sentence\): the engine died 3 times .*: out of memory"
    ):
        evaluate(configure("evaluate.engines=1"), BASE[:1])
    assert len(list(tmp_path.glob("death*"))) == 3


def dying(folder, deaths):
    """An actor whose engine is found dead at its first chunk, in the first `deaths` actors."""
    evaluator = pipeline._Evaluator

    class Dying(evaluator):
        async def answer(self, job, questions):
            count = len(list(folder.glob("death*")))
            if count < deaths:
                (folder / f"death{count}").touch()
                raise EngineDeadError("out of memory")
            return await super().answer(job, questions)

    return Dying


def test_mistakes_are_named_before_anything_runs(configure, tmp_path):
    with pytest.raises(DataError, match="name at least one model"):
        evaluate(configure(), [])
    with pytest.raises(DataError, match=r"two evaluations would write .*base-chain\.json"):
        evaluate(configure(), [BASE[1], EvalJob("base", "miniature:teacher", "chain")])
    with pytest.raises(ModelError, match="no such folder"):
        evaluate(configure(), [EvalJob("x", str(tmp_path / "nothing"), "chain")])
