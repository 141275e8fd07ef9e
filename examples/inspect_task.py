"""An Inspect task (inspect_ai) that scores a served student by the data sets' own rules: exact match, F1 and Acc.

    pip install inspect-ai openai
    steper serve --config jobs/configs/miniature.yaml engine.model=miniature:teacher   # in another terminal
    export STEPER_BASE_URL=http://127.0.0.1:8000/v1 STEPER_API_KEY=none                # or the service's token
    inspect eval examples/inspect_task.py --model openai-api/steper/miniature:teacher -T questions=questions.jsonl

`questions.jsonl` holds a question a line: {"id", "question", "answers"}, and "dataset" where its rules are its own. The
model's name is what the service's /v1/models says.
"""

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from steper_ray.core.answers import score


@task
def multi_hop(questions: str, limit: int | None = None) -> Task:
    """The questions of a file, each asked once; the service searches and reasons."""
    rows = [json.loads(line) for line in Path(questions).read_text(encoding="utf-8").splitlines()][:limit]
    samples = [
        Sample(
            id=row["id"],
            input=row["question"],
            target=row["answers"],
            metadata={"dataset": row.get("dataset", "")},
        )
        for row in rows
    ]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=official())


@scorer(metrics={"*": [mean(), stderr()]})
def official() -> Scorer:
    """em, f1, acc of the answer, best over the accepted ones."""

    async def of(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        found = score(answer, target.target, state.metadata["dataset"])
        return Score(value={"em": found.em, "f1": found.f1, "acc": found.acc}, answer=answer)

    return of
