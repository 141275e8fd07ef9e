"""On-policy batches: for each step the chains that the student writes now, on the questions of its data.

- The questions of a step are those of the trajectories that StepER would learn from in it.
- Every worker asks a part of them with the weights of this moment, and all get all chains: the batch is one for all.
- A branch learns what its step wrote and the end behind it; passages, question and earlier steps are its prompt.
- Nothing has to be saved: a run resumed at a step has the weights, and with them the chains, of that step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from steper_ray.config import TrainConfig
from steper_ray.core.answers import score
from steper_ray.core.copies import local
from steper_ray.core.errors import SteperError, TrainingError
from steper_ray.frameworks import layouts
from steper_ray.models import context_limit
from steper_ray.pretrained import load_shape, load_tokenizer
from steper_ray.prompts import PromptEncoder, encoder_for
from steper_ray.schema import Question, StopReason, Trajectory, question_from_row, trajectory_id
from steper_ray.schema.records import OwnChains
from steper_ray.training.data import Batch, Item, TrainingData, batch_of, item_of
from steper_ray.training.encoding import Encoded, encode
from steper_ray.training.engine import Engine, Worker
from steper_ray.training.job import Task
from steper_ray.training.packing import Tree
from steper_ray.training.sources import sources_of
from steper_ray.training.together import first_message

_NAMED = 3  # questions, and reasons, that an error spells out
T = TypeVar("T")


class Sampler(Protocol):
    """The student as it is asked, on one worker."""

    def update(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Takes new weights, by their names in the plain model."""
        ...

    def answer(self, questions: Sequence[Question], sample: int) -> list[Trajectory]:
        """One trajectory a question, in their order; each `sample` has its own draws. Raises SteperError."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class OwnChain:
    """A chain of the student's as trees to learn from; `item` is None where `trouble` says why there are none."""

    item: Item | None
    tokens: int = 0
    answered: bool = False
    right: bool = False
    trouble: str = ""


class StudentBatches:
    """The batches of one training on one worker. Workers call every method together. Raises TrainingError."""

    def __init__(self, task: Task, data: TrainingData, worker: Worker) -> None:
        self._task, self._data, self._worker = task, data, worker
        trusted = task.job.config.trust_remote_code
        self._limit = context_limit(load_shape(task.model, trusted).get_text_config())
        tokenizer, prompt = load_tokenizer(task.model, trusted), task.job.prompt
        self._encoders = {name: encoder_for(tokenizer, one, prompt) for name, one in layouts().items()}
        rollouts = task.job.rollouts
        assert rollouts is not None  # make_task asks for it
        targets = task.job.config.soft_targets
        self._questions = _questions(task.job.trajectories, targets is not None and targets.privileged)
        self._sampler: Sampler = self._together(lambda: rollouts.open(task.model))

    def batch(self, step: int, engine: Engine) -> tuple[Batch, OwnChains]:
        """The batch of optimiser step `step` (from 0), written with the engine's weights, and what it took."""
        started = time.monotonic()
        self._sampler.update(engine.plain_weights())
        epoch, chosen = self._data.chosen(step)
        names = [self._data.items.name(index) for index in chosen]
        mine = names[self._worker.rank :: self._worker.size]
        found: list[list[OwnChain]] = [[]] * self._worker.size
        dist.all_gather_object(found, self._together(lambda: self._write(mine, step)))
        all_written = [one for part in found for one in part]
        items = [one.item for one in all_written if one.item is not None]
        if not items:
            reasons = sorted({one.trouble for one in all_written})
            raise TrainingError(
                f"job '{self._task.name}': the student wrote nothing to learn from at step {step + 1}, for any of "
                f"{len(names)} questions ({', '.join(names[:_NAMED])}): {'; '.join(reasons[:_NAMED])}"
            )
        batch = batch_of(sorted(items, key=lambda item: item.question_id), epoch)
        return batch, {
            "seconds": time.monotonic() - started,
            "chains": len(all_written),
            "tokens": sum(one.tokens for one in all_written),
            "answered": sum(one.answered for one in all_written),
            "right": sum(one.right for one in all_written),
            "left_out": len(all_written) - len(items),
        }

    def close(self) -> None:
        self._sampler.close()

    def _write(self, names: Sequence[str], step: int) -> list[OwnChain]:
        asked = [self._questions[name] for name in names]
        chains = self._sampler.answer([question for question, _ in asked], step)
        config, limit = self._task.job.config, self._limit
        return [
            written(name, chain, self._encoders[chain.framework], config, limit, known)
            for name, chain, (_, known) in zip(names, chains, asked, strict=True)
        ]

    def _together(self, work: Callable[[], T]) -> T:
        """What a worker alone does; one worker's error is raised by all."""
        done, message = list[T](), None
        try:
            done.append(work())
        except SteperError as error:
            message = str(error)
        if (first := first_message(message)) is not None:
            raise TrainingError(f"job '{self._task.name}': {first}")
        return done[0]


def written(
    name: str,
    chain: Trajectory,
    encoder: PromptEncoder,
    config: TrainConfig,
    limit: int | None,
    known: Sequence[str] = (),
) -> OwnChain:
    """The trees of a chain: of its first steps alone where a row, or the model's `limit`, has no room for all.

    `known` is a right chain that the teacher alone sees.
    """
    ids, answers = encode(chain, encoder), chain.question.answers
    scored = score(chain.answer, answers, chain.question.dataset) if answers and chain.answer else None
    rewards = {"none": 0.0, "exact": scored.em, "f1": scored.f1} if scored else {}
    reward = rewards.get(config.on_policy.reward, 0.0)
    read = encode(chain, encoder.knowing(chain.question.text, known)) if known else ids
    for steps in range(len(chain.steps), 0, -1):
        item, taught = (_first_steps(name, one, steps, encoder.end, reward, config) for one in (ids, read))
        fits = max(map(len, item.trees)) <= config.row_tokens
        if fits and (limit is None or max(map(_longest, (*item.trees, *taught.trees))) <= limit):
            if known:
                pairs = zip(item.trees, taught.trees, strict=True)
                item = replace(item, trees=tuple(replace(tree, taught=other) for tree, other in pairs))
            right = scored is not None and scored.em == 1
            return OwnChain(item, len(ids.chain), chain.stop_reason is StopReason.ANSWERED, right)
    too_long = (
        f"its first step is longer than train.row_tokens ({config.row_tokens}) or the model's limit ({limit})"
    )
    return OwnChain(None, trouble=chain.error or too_long)


def _first_steps(name: str, ids: Encoded, steps: int, end: int, reward: float, config: TrainConfig) -> Item:
    return item_of(name, ids.trunk[: ids.cuts[steps - 1]], ids.own_words(end, reward)[:steps], config)


def _longest(tree: Tree) -> int:
    """Tokens of the longest example of a tree."""
    return max(branch.cut + len(branch.prompt) + len(branch.target) for branch in tree.branches)


def _questions(path: Path, with_chains: bool) -> dict[str, tuple[Question, tuple[str, ...]]]:
    """The questions of a file or folder of trajectories by the trajectories' ids, with their chains if wanted."""
    found = dict[str, tuple[Question, tuple[str, ...]]]()
    columns = ["question", "sample", "attempt", *(["steps.list.element.reasoning"] if with_chains else [])]
    for source in sources_of(path):
        with pq.ParquetFile(local(source.path)) as parquet:
            for batch in parquet.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    question = question_from_row(row["question"])
                    chain = tuple(step["reasoning"] for step in row.get("steps", ()))
                    found[trajectory_id(question.id, row["sample"], row["attempt"])] = question, chain
    return found
