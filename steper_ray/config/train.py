"""Settings of one student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from steper_ray.config.base import Positive, Section
from steper_ray.config.validation import ValidationConfig

Weights = tuple[float, float, float]


class TrainConfig(Section):
    """One student: the objective, the ZeRO-3 loop and its checkpoints."""

    student: str = "miniature:base"
    """The model to start from: a Hugging Face folder or hub name, or `miniature:base`."""
    method: Literal["steper", "vanilla_kd"] = "steper"
    """StepER learns all steps; vanilla-KD the final step alone."""
    weighting: Literal["difficulty", "uniform", "fixed"] = "difficulty"
    """Difficulty-aware (a learned sigma a task), the plain sum, or `fixed_weights`."""
    fixed_weights: Weights = (1.0, 1.0, 1.0)
    """Weights of initialization, expansion, aggregation where `weighting` is fixed (Table 2)."""
    normalize: Literal["per_task", "per_question"] = "per_task"
    """A task's loss is the mean over its examples, or its sum over the questions divided by their number (the
    paper's equation, where a question with more expansion steps has more of them in the loss)."""
    sigma_lr: float = Field(0.02, gt=0)
    """Learning rate of log sigma (its own optimiser; the paper does not say)."""
    log_sigma_bounds: tuple[float, float] = (-1.5, 1.5)
    """Bounds of log sigma: keeps a task that is learned from taking over the sum."""
    epochs: Positive = 2
    max_steps: Positive | None = None
    """Optimiser steps, if not set by `epochs`: the data is repeated as often as it takes."""
    lr: float = Field(5e-6, gt=0)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    batch_examples: Positive = 64
    """Step-wise examples of one optimiser step, over all workers. Trajectories are kept whole: a batch takes
    round(batch_examples / mean examples a trajectory) of them, so StepER and vanilla-KD (one example each)
    make equally large steps, and vanilla-KD makes fewer of them an epoch."""
    row_tokens: Positive = 2048
    """Tokens of one packed row; no trajectory may be longer."""
    rows_per_micro_batch: Positive = 1
    """Rows of one forward pass on one worker: the lever for memory."""
    packing: Literal["tree", "padded"] = "tree"
    """Share a trajectory's passages between its steps (exact), or one padded row an example."""
    attention: Literal["blocks", "dense"] = "blocks"
    """Leave out what no token of a packed row sees, or mask it: same gradients; `dense` is for models whose layers do
    not pass on what blocks need."""
    gradient_checkpointing: bool = False
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    seed: int = 0
    workers: Positive = 2
    use_gpu: bool = False
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each worker."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    offload: bool = False
    """Keep parameters and optimiser state in host memory (GPU only)."""
    checkpoint_every: Positive = 200
    """Optimiser steps between checkpoints."""
    keep_checkpoints: Positive = 2
    max_failures: int = Field(2, ge=0)
    """Worker failures that are restarted from the last checkpoint."""
    validation: ValidationConfig = ValidationConfig()
    """What is looked at while the student learns."""
    tracking: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Where every step's numbers go besides metrics.jsonl. Addresses and keys are those tools' own environment
    variables (MLFLOW_TRACKING_URI, WANDB_API_KEY, ...)."""
    tracking_project: str = "steper_ray"
    """Project (Weights & Biases) or experiment (MLflow) that the run belongs to."""

    @model_validator(mode="after")
    def _bounds(self) -> TrainConfig:
        if self.log_sigma_bounds[0] >= self.log_sigma_bounds[1]:
            raise ValueError("log_sigma_bounds must be (low, high) with low < high")
        return self
