"""Right chains of the miniature, and copies with one step made wrong while the answer stays right.

Gold chains over really retrieved passages; those that state a fact before its passage was found are left out. One step
before the last is made wrong:
  invented   its value is a name that stands nowhere
  swapped    its value is another name of the passages seen so far
  beside     it states a true fact of those passages that is no part of the chain
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

from steper_ray.config import Config
from steper_ray.core.claims import grounding
from steper_ray.core.sentences import split_sentences
from steper_ray.corpora import open_corpus
from steper_ray.data.filtering import drop_reason
from steper_ray.retrieval.index import ensure_index, index_folder, open_index
from steper_ray.rollouts.annotation import AnnotationTeacher
from steper_ray.schema import Trajectory

KINDS = ("invented", "swapped", "beside")


def right_ones(config: Config) -> list[Trajectory]:
    """Gold chains whose every fact had been found when it was stated."""
    corpus = open_corpus(config.corpus)
    fingerprint = corpus.fingerprint()
    folder = index_folder(config.retrieval, config.run_dir, fingerprint)
    ensure_index(corpus.passages(), config.retrieval, folder, fingerprint)
    teacher = AnnotationTeacher(open_index(folder, config.retrieval, fingerprint), config.reasoning)

    async def run() -> list[Trajectory]:
        return [await teacher.run(question) for question in corpus.questions()]

    found = [t for t in asyncio.run(run()) if drop_reason(t, "exact") is None]
    return [t for t in found if all(_known(t, number) for number in range(len(t.steps)))]


def _known(trajectory: Trajectory, number: int) -> bool:
    """Whether one passage seen by then holds all that the step says."""
    seen = [hit.passage for step in trajectory.steps[: number + 1] for hit in step.hits]
    return any(grounding(trajectory.steps[number].reasoning, "", [passage]) == 1 for passage in seen)


def planted(trajectory: Trajectory, kind: str, rng: Random, number: int | None = None) -> Trajectory:
    """A copy with one wrong step before the last: step `number` (from 0), or one drawn at random."""
    if number is None:
        number = rng.randrange(len(trajectory.steps) - 1)
    step = trajectory.steps[number]
    seen = [hit.passage for s in trajectory.steps[: number + 1] for hit in s.hits]
    value = step.reasoning.removesuffix(".").split()[-1]
    if kind == "invented":
        wrong = step.reasoning.replace(value, "Qwexomir")
    elif kind == "swapped":
        names = sorted({p.title for p in seen if " " not in p.title and p.title not in step.reasoning})
        # A first step may have seen notes and its own subject alone: then any name of the trajectory.
        names = names or sorted({p.title for p in trajectory.passages if p.title not in step.reasoning})
        wrong = step.reasoning.replace(value, rng.choice(names))
    else:
        facts = sorted(s for p in seen for s in split_sentences(p.text) if s not in trajectory.chain)
        wrong = rng.choice(facts)
    steps = list(trajectory.steps)
    steps[number] = replace(step, reasoning=wrong)
    return replace(trajectory, steps=tuple(steps))
