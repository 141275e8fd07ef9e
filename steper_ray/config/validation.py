"""Settings of what is looked at while a student learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from steper_ray.config.base import FilePath, Positive, Section
from steper_ray.config.data import CorpusConfig
from steper_ray.config.reasoning import EngineConfig


class ValidationConfig(Section):
    """Held-out examples and questions. Off by default: nothing is held out and nothing is asked."""

    share: float = Field(0.0, ge=0, lt=1)
    """Share of the questions that are taken out of the training data, with all their trajectories, by a hash of their
    ids: the same ones in every run, and more data moves none of them."""
    number: Positive | None = None
    """Hold out this many questions instead of a share."""
    trajectories: FilePath | None = None
    """Or other trajectories, a Parquet file or a folder of them; all of the training data is then learned from."""
    every: Positive = 50
    """Optimiser steps between two looks at the loss of the held-out examples; the last step has one in any case."""
    keep: Literal["last", "best"] = "last"
    """Student to export: of the last step, or of the step with the lowest loss on held-out examples."""
    by: Literal["sum", "initialization", "expansion", "aggregation"] = "sum"
    """The loss that `best` goes by: the plain sum of the abilities', or one of them."""
    questions: int = Field(0, ge=0)
    """Questions that the student answers in the real multi-step loop now and then, beside the training and never
    waited for by it; 0 for none. They are held-out ones of the top-level corpus, or of `corpus`."""
    questions_every: Positive | None = None
    """Optimiser steps between two rounds of questions, by default `every`. A round is omitted while another waits."""
    corpus: CorpusConfig | None = None
    """Source of the questions; by default the run's own."""
    engine: EngineConfig | None = None
    """Engine that answers them with the student's weights; by default the run's, or transformers where that is an
    endpoint."""
    num_cpus: float | None = Field(None, ge=0)
    """CPUs reserved for that engine, by default `evaluate.num_cpus`. With 0 it starts on a full cluster too, and takes
    its share of the training's CPUs; with more it waits until they are free."""
    num_gpus: float | None = Field(None, ge=0)
    """GPUs reserved for that engine, by default `evaluate.num_gpus`."""

    @property
    def held_out(self) -> bool:
        """Whether there are examples to look at."""
        return bool(self.share or self.number or self.trajectories)

    @model_validator(mode="after")
    def _sources(self) -> ValidationConfig:
        given = [name for name in ("share", "number", "trajectories") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say both what is held out: leave one out")
        if self.keep == "best" and not given:
            raise ValueError("keep 'best' needs held-out examples: set share, number or trajectories")
        if self.questions and self.corpus is None:
            if not self.share and self.number is None:
                raise ValueError(
                    "questions need share or number, which hold questions out of the training data, or a corpus"
                )
            if self.number is not None and self.number < self.questions:
                raise ValueError(
                    f"questions {self.questions} are more than are held out: number {self.number}"
                )
        if self.engine is not None and self.engine.kind == "openai":
            raise ValueError("engine.kind 'openai': an endpoint cannot load the student; name another")
        return self
