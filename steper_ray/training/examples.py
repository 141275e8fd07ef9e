"""Step-wise examples as they lie in Parquet files, by trajectory: those that the method learns, and those held out.

Every worker reads all of them. No tokenizer, no model, no Ray.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.config import TrainConfig, ValidationConfig
from steper_ray.errors import TrainingError
from steper_ray.schema import EXAMPLE_SCHEMA, Ability, Passage, StepExample, example_from_row
from steper_ray.splits import draw, question_of

#: The examples of each trajectory, in step order.
Steps = dict[str, list[StepExample]]


def read_trajectories(path: Path, config: TrainConfig) -> Steps:
    """The examples of a Parquet file or folder that the method learns from, by trajectory. Raises TrainingError."""
    trajectories = {q: _chosen(steps, config) for q, steps in _read(path).items()}
    kept = {q: steps for q, steps in trajectories.items() if steps}
    if not kept:
        raise TrainingError(
            f"{path}: no {'aggregation ' if config.method == 'vanilla_kd' else ''}examples: nothing to train on. "
            "Look at the build stage's counts: a filter may have dropped every trajectory"
        )
    return kept


def hold_out(trajectories: Steps, validation: ValidationConfig) -> Steps:
    """Those of the held-out questions: all trajectories of a question, or none. Raises TrainingError."""
    if not validation.share and validation.number is None:
        return {}
    questions = sorted({question_of(q) for q in trajectories}, key=draw)
    number = validation.number or sum(draw(q) < validation.share for q in questions)
    if not 0 < number < len(questions):
        raise TrainingError(
            f"of {len(questions)} questions {number} would be held out and {max(0, len(questions) - number)} learned "
            "from: change train.validation.share or number"
        )
    away = set(questions[:number])
    return {q: steps for q, steps in trajectories.items() if question_of(q) in away}


def _read(path: Path) -> Steps:
    """Examples by question id, in step order. Equal passages are one object in memory."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not path.exists():
        raise TrainingError(f"{path}: no such file or folder of examples: run the build stage first")
    if not files:
        raise TrainingError(f"{path}: no *.parquet file below this folder: run the build stage first")
    passages: dict[Passage, Passage] = {}
    trajectories: Steps = {}
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
            missing = [name for name in EXAMPLE_SCHEMA.names if name not in parquet.schema_arrow.names]
            if missing:
                raise TrainingError(
                    f"{file}: no column {missing[0]!r}: this is no file of step-wise examples"
                )
            for batch in parquet.iter_batches(batch_size=256, columns=EXAMPLE_SCHEMA.names):
                for row in batch.to_pylist():
                    example = _shared(example_from_row(row), passages)
                    trajectories.setdefault(example.question_id, []).append(example)
        except (pa.ArrowInvalid, OSError) as error:
            raise TrainingError(f"{file}: not a readable Parquet file: {error}") from error
        except (TypeError, ValueError, KeyError) as error:
            raise TrainingError(f"{file}: a row does not fit the example schema: {error}") from error
    for steps in trajectories.values():
        steps.sort(key=lambda example: example.step)
    return trajectories


def _shared(example: StepExample, passages: dict[Passage, Passage]) -> StepExample:
    shared = tuple(tuple(passages.setdefault(p, p) for p in step) for step in example.passages)
    return replace(example, passages=shared)


def _chosen(steps: list[StepExample], config: TrainConfig) -> list[StepExample]:
    """The examples of one trajectory, in step order, that the config learns."""
    if config.method == "vanilla_kd":
        return [e for e in steps if e.ability is Ability.AGGREGATION]
    if config.steps == "all":
        return steps
    middle = [e for e in steps if e.ability is Ability.EXPANSION]
    drawn = middle if config.steps == "first_mid_final" else []
    if len(drawn) > 1:
        drawn = [Random(f"{config.seed}-{middle[0].question_id}").choice(middle)]
    return [e for e in steps if e.ability is not Ability.EXPANSION or e in drawn]
