"""Verifiers on planted wrong steps: how many are caught, and how many of those caught are wrong.

Gold chains over really retrieved passages of miniature worlds; those that state a fact before its passage was found
are left out. In a copy of each, one step before the last is made wrong while the answer stays right:
  invented   its value is a name that stands nowhere
  swapped    its value is another name of the passages seen so far
  beside     it states a true fact of those passages that is no part of the chain
The answer filter keeps them all. Precision and recall are over trajectories, the right ones and one kind of wrong ones
in equal number; confidence cannot be planted, so it is not here.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from steper_ray.claims import grounding
from steper_ray.config import Config
from steper_ray.corpora import open_corpus
from steper_ray.distillation.annotation import AnnotationTeacher
from steper_ray.distillation.filtering import drop_reason
from steper_ray.distillation.model_verify import ModelVerifier, open_verifiers
from steper_ray.distillation.verify import first_failure, score_steps
from steper_ray.generation import open_generator
from steper_ray.reasoning.sentences import split_sentences
from steper_ray.retrieval.index import ensure_index, index_folder, open_index
from steper_ray.schema import StepScore, Trajectory

KINDS = ("invented", "swapped", "beside")
PURE = {"grounding": 1.0, "support": 1.0}
ASKED = {"agreement": 0.5}
WORLDS = 12


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


def planted(trajectory: Trajectory, kind: str, rng: Random) -> Trajectory:
    """A copy with one wrong step before the last."""
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


async def model_scores(verifier: ModelVerifier, trajectories: Sequence[Trajectory]) -> list[list[StepScore]]:
    found = await asyncio.gather(*(verifier.scores(t) for t in trajectories))
    return [
        [StepScore(t.id, s.index, verifier.name, score) for s, score in zip(t.steps, scores, strict=True)]
        for t, scores in zip(trajectories, found, strict=True)
    ]


def tell(verifier: str, right: Sequence[bool], wrong: dict[str, Sequence[bool]]) -> None:
    """One line: which were refused, of the right ones and of each kind of wrong ones."""
    refused = sum(right)
    parts = []
    for kind, caught in wrong.items():
        hits = sum(caught)
        precision = f"{hits / (hits + refused):.2f}" if hits + refused else "none"
        parts.append(f"{kind} recall {hits / len(caught):.2f} precision {precision}")
    print(f"{verifier:10} refuses {refused} of {len(right)} right ones; {'; '.join(parts)}", flush=True)


async def asked(config: Config, right: list[Trajectory], wrong: dict[str, list[Trajectory]]) -> None:
    generator = open_generator(config.engine)
    try:
        # Drafts read the passages that a step had: nothing is retrieved.
        verifiers = open_verifiers(ASKED, config, None, generator, None)  # type: ignore[arg-type]
        for name, least in ASKED.items():

            async def refused(trajectories: list[Trajectory], name: str, least: float) -> list[bool]:
                scored = await model_scores(verifiers[name], trajectories)
                return [first_failure(scores, {name: least}) is not None for scores in scored]

            found = {kind: await refused(some, name, least) for kind, some in wrong.items()}
            tell(name, await refused(right, name, least), found)
    finally:
        await generator.close()


def main() -> None:
    rng = Random(0)
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {"run_dir": Path(folder), "corpus": {"miniature": {"worlds": WORLDS, "seed": 77}}}
        )
        right = right_ones(config)
        wrong = {kind: [planted(t, kind, rng) for t in right] for kind in KINDS}
        for name, least in PURE.items():

            def refused(t: Trajectory, name: str = name, least: float = least) -> bool:
                return first_failure(score_steps(t, [name]), {name: least}) is not None

            tell(
                name,
                [refused(t) for t in right],
                {k: [refused(t) for t in some] for k, some in wrong.items()},
            )
        asyncio.run(asked(config, right, wrong))


if __name__ == "__main__":
    main()
