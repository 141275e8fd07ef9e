"""Step-wise examples of the miniature world with gold chains, for the tests of training. No retrieval, no model."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.corpora.miniature import make_corpus, state
from steper_ray.schema import EXAMPLE_SCHEMA, Ability, StepExample, to_row


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
                    ability=Ability.AGGREGATION
                    if s == len(chain)
                    else Ability.INITIALIZATION
                    if s == 1
                    else Ability.EXPANSION,
                    question=question.text,
                    passages=tuple(steps[:s]),
                    chain=tuple(chain[:s]),
                )
            )
    return examples


def write_examples(path: Path, examples: list[StepExample]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([to_row(e) for e in examples], schema=EXAMPLE_SCHEMA), path)
    return path
