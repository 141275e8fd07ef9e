"""A student asked in the middle of its training: the one multi-step loop over an engine whose weights follow.

What `training` is given for on-policy distillation (its `Rollouts` and `Sampler`); every worker opens its own. No Ray.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steper_ray.config import Config, EngineConfig, ReasoningConfig, RetrievalConfig, SamplingConfig
from steper_ray.core.awaiting import together
from steper_ray.core.errors import ModelError
from steper_ray.generation import open_generator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval import open_cached, search_settings
from steper_ray.rollouts.spec import absolute_reasoning, at_fixed_steps, reasoning_identity
from steper_ray.schema import Question, Trajectory

if TYPE_CHECKING:
    import torch

    from steper_ray.generation.transformers_engine import TransformersGenerator


@dataclass(frozen=True, slots=True)
class StudentRollouts:
    """How a student is asked while it learns. Paths are absolute; `corpus` is the fingerprint of the index's corpus."""

    engine: EngineConfig
    sampling: SamplingConfig
    reasoning: ReasoningConfig
    retrieval: RetrievalConfig
    index: Path
    corpus: str

    @property
    def identity(self) -> str:
        """What decides the chains, besides the weights: JSON. Raises DataError."""
        settings = {
            "corpus": self.corpus,
            "retrieval": search_settings(self.retrieval),
            "reasoning": reasoning_identity(self.reasoning),
            "sampling": self.sampling.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json", include={"dtype", "max_model_len"}),
        }
        return json.dumps(settings, sort_keys=True)

    def open(self, model: str) -> StudentSampler:
        """The loop around a model folder or hub name. Raises RetrievalError or ModelError."""
        return StudentSampler(self, model)


def student_rollouts(config: Config, index: Path, corpus: str) -> StudentRollouts:
    """As a run's config says: its reasoning at fixed steps, without demonstrations, at `train.on_policy.temperature`.

    Raises ModelError for an engine whose weights cannot follow the training.
    """
    if config.engine.kind != "transformers":
        raise ModelError(
            f"engine.kind={config.engine.kind}: train.method=on_policy asks the student inside its training, whose "
            "weights change with every step; set engine.kind=transformers for this training"
        )
    reasoning = at_fixed_steps(config).reasoning.model_copy(
        update={
            "demonstrations": None,
            "few_shot": False,
            "deadline_s": None,
            "escalate": None,
            "search": None,
        }
    )
    sampling = {"temperature": config.train.on_policy.temperature, "seed": config.train.seed}
    return StudentRollouts(
        engine=config.engine.model_copy(
            update={"tokenizer": None, "trust_remote_code": config.train.trust_remote_code}
        ),
        sampling=config.sampling.model_copy(update=sampling),
        reasoning=absolute_reasoning(reasoning),
        retrieval=config.retrieval,
        index=index.resolve(),
        corpus=corpus,
    )


class StudentSampler:
    """One worker's student. Not thread-safe."""

    def __init__(self, how: StudentRollouts, model: str) -> None:
        retriever = open_cached(how.index, how.retrieval, how.corpus)
        self._generator: TransformersGenerator = open_generator(
            how.engine.model_copy(update={"model": model})
        )  # type: ignore[assignment]
        self._reasoner = Reasoner(retriever, self._generator, how.reasoning, how.sampling, "student")

    def update(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Takes new weights, by their names in the plain model."""
        self._generator.load_weights(weights)

    def answer(self, questions: Sequence[Question], sample: int) -> list[Trajectory]:
        """One trajectory a question, in their order; each `sample` has its own draws. Raises EngineDeadError."""
        reasoner = self._reasoner.with_sample(sample)
        return asyncio.run(together(reasoner.run(question) for question in questions))

    def close(self) -> None:
        """Ends the engine."""
        asyncio.run(self._generator.close())
