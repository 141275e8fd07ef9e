"""Trajectories of the miniature world with gold chains and their step-wise examples, for the tests of training."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.core.files import write_table
from steper_ray.core.splits import question_of
from steper_ray.corpora.miniature import make_corpus, state
from steper_ray.schema import (
    TRAJECTORY_SCHEMA,
    Ability,
    Hit,
    Question,
    Step,
    StepExample,
    StopReason,
    Trajectory,
    ability_of,
    to_row,
)
from steper_ray.training.sources import sources_of
from steper_ray.training.token_writer import tokens_key, write_tokens
from steper_ray.training.tokens import Tokens, is_whole


def gold_examples(worlds: int = 2, questions: int = 4, seed: int = 5) -> list[StepExample]:
    """One trajectory a question: a step a hop, each with the hop's gold passage and one other."""
    passages, asked = make_corpus(seed, worlds, questions, "train")
    by_id = {p.id: p for p in passages}
    examples = []
    for number, question in enumerate(asked):
        chain = []
        for sub in question.decomposition:
            relation, subject = sub.question.removesuffix("?").split(" the ", 1)[1].split(" of ")
            earlier = question.decomposition[int(subject[1:]) - 1].answer if subject[0] == "#" else subject
            chain.append(state(relation, earlier, sub.answer))
        chain.append(f"So the answer is: {question.answers[0]}.")
        steps = [(by_id[gold], passages[number + i]) for i, gold in enumerate(question.gold_ids)]
        steps.append((passages[-1 - number],))
        for s in range(1, len(chain) + 1):
            examples.append(
                StepExample(
                    id=f"{question.id}/{s}",
                    question_id=question.id,
                    step=s,
                    n_steps=len(chain),
                    ability=ability_of(s, len(chain)),
                    question=question.text,
                    passages=tuple(steps[:s]),
                    chain=tuple(chain[:s]),
                )
            )
    return examples


def trajectories_of(examples: list[StepExample]) -> list[Trajectory]:
    """The trajectories that give these examples, in the order of the last of each."""
    return [_trajectory(e) for e in examples if e.ability is Ability.AGGREGATION]


def _trajectory(last: StepExample) -> Trajectory:
    found = zip(last.passages, last.chain, strict=True)
    steps = tuple(
        Step(i, last.question, tuple(Hit(p, 1.0) for p in new), piece)
        for i, (new, piece) in enumerate(found, 1)
    )
    sample, _, attempt = last.question_id.partition("~")[2].partition(".")
    question = Question(question_of(last.question_id), last.question, ("Cem",))
    return Trajectory(
        question,
        last.framework,
        steps,
        "Cem",
        StopReason.ANSWERED,
        sample=int(sample or 0),
        attempt=int(attempt or 0),
    )


def write_trajectories(path: Path, trajectories: list[StepExample] | list[Trajectory]) -> Path:
    """A Parquet file of trajectories, given as such or as their examples."""
    given = [t for t in trajectories if isinstance(t, Trajectory)]
    rows = given or trajectories_of(trajectories)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, pa.Table.from_pylist([to_row(t) for t in rows], schema=TRAJECTORY_SCHEMA))
    return path


def tokens_of(path: Path, tokenizer: Any) -> Tokens:
    """Token files of a file or folder of trajectories, in a folder beside it, made here and now."""
    files = {}
    for source in sources_of(path):
        file = path.parent / "tokens" / f"{tokens_key(tokenizer)[:8]}-{source.sha256}.arrow"
        if not is_whole(file):
            write_tokens(source, file, tokenizer)
        files[file] = None
    return Tokens(path, tuple(files))
