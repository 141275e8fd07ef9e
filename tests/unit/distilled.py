"""Trajectories with known content, for the tests of the distillation room."""

import dataclasses

from steper_ray.config import Config
from steper_ray.distillation.assemble import Part, assemble
from steper_ray.distillation.scores import ScoreStore
from steper_ray.distillation.shards import ShardStore, cut
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


def assembled(run_dir, trajectories, samples=1, keep="first", judged=(), **verify):
    """Commits the trajectories, `samples` of each question, in shards of two questions, and assembles them.

    `judged` are the scores that a judge gave.
    """
    config = Config(run_dir=run_dir, build={"verify": verify, "keep": keep})
    store = ShardStore(run_dir / "data" / "trajectories", "run")
    store.clean()
    shards = cut([t.question for t in trajectories[::samples]], 2, "run")
    size = 2 * samples
    for number, shard in enumerate(shards):
        store.commit(shard, trajectories[size * number : size * (number + 1)])
    stores = {"judge": ScoreStore(run_dir / "data" / "scores", "judge", {})} if judged else {}
    for shard in shards if judged else ():
        ids = {question.id for question in shard.questions}
        of_shard = [score for score in judged if score.question_id.partition("~")[0] in ids]
        stores["judge"].commit(shard.id, of_shard)
    return assemble(config, [Part({"teacher": "engine"}, shards, store, stores)], run=len(shards), skipped=0)
