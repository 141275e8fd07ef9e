"""Trajectories with known content, for the tests of the distillation room."""

import dataclasses
import shutil

from steper_ray.config import Config
from steper_ray.data.assemble import assemble
from steper_ray.evaluation.scores import score_trajectories
from steper_ray.evaluation.store import EvalJob, job_files, save_scores
from steper_ray.rollouts.questions import write_questions
from steper_ray.rollouts.scores import ScoreStore, chain_digest
from steper_ray.rollouts.set import RolloutSet
from steper_ray.rollouts.shards import Owed
from steper_ray.rollouts.spec import Asking, RolloutSpec
from steper_ray.schema import Hit, Passage, Question, Step, StopReason, SubQuestion, Trajectory, Usage

PASSAGES = [Passage(f"p{n}", f"T{n}", f"text {n}") for n in range(6)]


def question(number=1, answers=("Cem",), gold=("p1", "p2"), hops=2):
    subs = (
        SubQuestion("Alba >> director", "Bo"),
        SubQuestion("Who is the mother of #1 ?", "Cy"),
        SubQuestion("Where was #2 born?", "Cem"),
    )
    return Question(f"q{number}", f"Question {number}?", answers, gold, hops, subs[:hops])


def trajectory(
    number=1,
    pieces=("Al is Bo.", "So the answer is: Cem."),
    answer="Cem",
    found=((1,), (2,)),
    reason="answered",
    **rest,
):
    steps = tuple(
        Step(i, f"query {i}", tuple(Hit(PASSAGES[n], 1.0) for n in new), piece, generation_seconds=0.1 * i)
        for i, (piece, new) in enumerate(zip(pieces, found, strict=True), 1)
    )
    return Trajectory(question(number, **rest), "ircot", steps, answer, StopReason(reason), source="test")


def with_usage(t):
    """A trajectory of two steps that tells its tokens."""
    usages = (Usage(100, 10, 0), Usage(200, 20, 150))
    steps = (dataclasses.replace(s, usage=u) for s, u in zip(t.steps, usages, strict=True))
    return dataclasses.replace(t, steps=tuple(steps))


def rollout_set(run_dir, trajectories, owed=(), size=2, before=(), judged=(), **asking):
    """The set of one teacher, committed in shards of `size` questions; `judged` are the scores that a judge gave."""
    first = trajectories[0]
    questions = list(dict.fromkeys([*(t.question for t in trajectories), *(one for one, _ in owed)]))
    config = Config()
    spec = RolloutSpec(
        engine=config.engine.model_copy(update={"model": "tiny", "kind": "openai", "url": first.source}),
        sampling=config.sampling,
        reasoning=config.reasoning,
        retrieval=config.retrieval,
        index=run_dir,
        corpus="corpus",
        folder=run_dir / "data" / "trajectories",
        source=first.source,
        asking=Asking(first_sample=first.sample, **asking),
        before=tuple(found.spec.store for found in before),
        scores={"judge": run_dir / "data" / "scores" / "judge"} if judged else {},
    )
    asked = before[0].questions if before else write_questions(run_dir / "questions", questions, size)
    found = RolloutSet(spec, asked)
    for number, shard in enumerate(found.shards):
        ids = [question.id for question in asked.read(number)]
        mine = sorted(
            (t for t in trajectories if t.question.id in ids), key=lambda t: ids.index(t.question.id)
        )
        left = [Owed(question.id, 0, 0, error, 1) for question, error in owed if question.id in ids]
        manifest = spec.store.commit(shard, mine, left)
        if judged:
            scores = {t.id: [score for score in judged if score.question_id == t.id] for t in mine}
            scores = {key: found for key, found in scores.items() if found}
            chains = {t.id: chain_digest(t) for t in mine if t.id in scores}
            left = [t.question.id for t in mine if t.id not in scores]
            ScoreStore(spec.scores["judge"]).commit(shard, scores, chains, manifest.sha256, left)
    return found


def stored_evaluation(run_dir, name, trajectories, unit="chain", owed=0):
    """An evaluation named `name` below run_dir, as it stands after it was counted."""
    job = EvalJob(name, "some/model", unit)
    files, work = job_files(run_dir, job), run_dir / f"{name}-{unit}"
    found = rollout_set(work, trajectories)
    files.shards.parent.mkdir(exist_ok=True)
    found.spec.folder.rename(files.shards)
    scores = dataclasses.replace(score_trajectories(trajectories), owed=owed)
    save_scores(files, job, "print", found.shards, scores)


def assembled(run_dir, trajectories, keep="first", judged=(), owed=(), **verify):
    """What a build makes of the trajectories of one teacher."""
    config = Config(run_dir=run_dir, build={"verify": verify, "keep": keep})
    shutil.rmtree(run_dir / "data" / "trajectories", ignore_errors=True)
    found = rollout_set(run_dir, trajectories, owed, judged=judged)
    return assemble(config, [found], run=len(found.shards), skipped=0)
