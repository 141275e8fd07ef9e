"""Settings of one student."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from steper_ray.config.base import FolderOrName, Positive, Section
from steper_ray.config.presets import PRESETS
from steper_ray.config.validation import ValidationConfig

Weights = tuple[float, float, float]
#: A teacher that is the student itself, as it starts.
SELF = "self"
#: No model but what the teacher of the build said at each token (`build.logits`).
BUILD = "build"


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) beside frozen weights: only they learn."""

    rank: Positive = 16
    alpha: float = Field(32.0, gt=0)
    """An adapter's output is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of an adapter's inputs that is omitted while training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the modules that get an adapter, such as [q_proj, v_proj]; or all linear layers but the output's."""
    merge: bool = True
    """Export whole weights with the adapters merged in, which every engine loads; or the adapters alone, as PEFT
    writes them, which no engine here loads."""


class SoftTargetsConfig(Section):
    """A teacher's whole distribution of each target token beside the token itself (Hinton et al., arXiv 1503.02531).

    A model reads the same step trees as the student, passages once, in the training itself: nothing is stored, and
    any model with the student's tokenizer can be one. Or `build`: what the build's teacher said when it wrote them.
    """

    teacher: FolderOrName
    """A model folder or hub name; or `self`, the student as it starts, which needs `privileged`; or `build`: the
    `build.logits` likeliest tokens at each token and the rest as one more, in the step that wrote it. What an example
    repeats of earlier steps has cross-entropy alone: its teacher had fewer passages when it wrote that."""
    privileged: bool = False
    """The teacher sees the question's right chain, that of the build, in front of the passages (on-policy
    self-distillation, arXiv 2601.18734). In method `on_policy` alone."""
    share: float = Field(0.5, gt=0, le=1)
    """a of an example's loss (1 - a) x cross-entropy + a x divergence, both means over its target tokens. In method
    `on_policy` there is no chain of a teacher to copy: it is 1 there, and nothing else."""
    beta: float = Field(0.0, ge=0, le=1)
    """Of the generalised Jensen-Shannon divergence (Agarwal et al., arXiv 2306.13649): 0 is the forward KL divergence,
    which covers all that the teacher would say, 1 the reverse one, which keeps to what it says most."""
    temperature: float = Field(1.0, gt=0)
    """Both distributions are softened by it; the divergence is multiplied by its square (Hinton et al.)."""


class OnPolicyConfig(Section):
    """How a student is asked the questions that it learns from in method `on_policy`; the rest is the run's reasoning,
    retrieval and engine."""

    temperature: float = Field(1.0, ge=0)
    """Of the student's own chains; 0 is greedy."""
    reward: Literal["none", "exact", "f1"] = "none"
    """Reward where it is known (DGPO): of a chain with reward r the loss is r x cross-entropy on its own words +
    (1 - r) x divergence from the teacher. `exact`: r is 1 for a right answer; `f1`: its F1 score; `none`: r is 0."""
    step_weights: Literal["equal", "divergence"] = "equal"
    """`divergence`: the loss of a step that is further from the teacher than one before it in the chain weighs less, as
    the inverse of the two (after SOD)."""


class TrainConfig(Section):
    """One student: the objective, the ZeRO-3 loop and its checkpoints."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the training and of its student's folder, RUN_DIR/models/NAME; by default the `method`."""
    preset: str | None = None
    """How to run on common hardware: `0.5b`, `1.5b`, `3b`, `7b` or `8b` with `-1gpu`, `-4gpu` or `-8gpu`, or `cpu`
    (presets.py). It sets workers, use_gpu, num_cpus, zero_stage, offload, gradient_checkpointing, row_tokens and
    rows_per_micro_batch; each of them that is set beside it keeps what is set."""
    student: FolderOrName = "miniature:base"
    """The model to start from: a Hugging Face folder or hub name, or `miniature:base`."""
    trust_remote_code: bool = False
    """Run Python code that the student's repository brings along. Read it first: it may do anything."""
    method: Literal["steper", "vanilla_kd", "on_policy"] = "steper"
    """StepER learns all steps, vanilla-KD the final step alone; `on_policy` learns what the teacher of `soft_targets`
    would say at each token of chains that the student writes for every batch (arXiv 2306.13649)."""
    steps: Literal["all", "first_final", "first_mid_final"] = "all"
    """Examples of a trajectory that StepER learns: all, the first and the final one, or these two and one between
    them, drawn from `seed` and the question (Fig. 3, which goes from vanilla-KD to StepER in these steps)."""
    form: Literal["chain", "kard", "chain_of_note", "sail"] = "chain"
    """The form of the trajectories: their steps, or a single-step baseline of Table 1 with the passages of one search
    (data/single_step.py says what each learns). Ask its student with `reasoning.max_steps=1`, in unit `chain`."""
    weighting: Literal["difficulty", "uniform", "fixed"] = "difficulty"
    """Difficulty-aware (a learned sigma a task), the plain sum, or `fixed_weights`."""
    fixed_weights: Weights = (1.0, 1.0, 1.0)
    """Weights of initialization, expansion, aggregation where `weighting` is fixed (Table 2)."""
    normalize: Literal["per_task", "per_question"] = "per_task"
    """A task's loss is the mean over its examples, or its sum over the questions divided by their number (the
    paper's equation, where a question with more expansion steps has more of them in the loss)."""
    sigma_lr: float = Field(0.02, gt=0)
    """Learning rate of log sigma (its own optimiser; the paper does not say). Adam moves it by about so much a step: a
    run of N steps needs well over 3 / N for sigma to follow a loss down to 0.01."""
    log_sigma_bounds: tuple[float, float] = (-1.5, 1.5)
    """Bounds of log sigma: keeps a task that is learned from taking over the sum."""
    soft_targets: SoftTargetsConfig | None = None
    """Learn from a teacher's distributions too, such as `{teacher: miniature:teacher}`."""
    on_policy: OnPolicyConfig = OnPolicyConfig()
    """How the student writes its own chains in method `on_policy`."""
    epochs: Positive = 2
    max_steps: Positive | None = None
    """Optimiser steps, if not set by `epochs`: the data is repeated as often as it takes."""
    lr: float = Field(5e-6, gt=0)
    """The paper's, which moves all weights. Adapters bear and need more: about 1e-4."""
    lora: LoraConfig | None = None
    """Train low-rank adapters alone; `{}` takes the defaults."""
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
    packing: Literal["tree", "rows", "padded"] = "tree"
    """Share a trajectory's passages between its steps (exact); fill rows with examples that share nothing; or one
    padded row an example. The same losses and gradients: the second and third are there to compare with."""
    attention: Literal["blocks", "dense", "flex", "eager"] = "blocks"
    """Leave out what no token of a packed row sees, or mask it: same gradients; `dense` is for models whose layers do
    not pass on what blocks need, `flex` is FlexAttention, on a GPU. `eager` leaves attention to the model, for layers
    that take no mask of ours (ALiBi, state spaces, linear attention, windows); it needs packing=padded. A training
    checks before its first step that the student gives packed examples what it gives them alone."""
    gradient_checkpointing: bool = False
    liger: Literal["auto"] | bool = "auto"
    """Liger's fused kernels (norms, rotary positions, gated MLPs; never its loss) instead of transformers' own: same
    results up to rounding, less memory and time. `auto`: on a GPU where liger-kernel is installed."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    seed: int = 0
    workers: Positive = 2
    use_gpu: bool = False
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each worker."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    offload: bool = False
    """Keep optimiser state, and with stage 3 parameters and gradients, in host memory (GPU only)."""
    check_memory: bool = True
    """Warn where the estimated memory is more than a worker has, and refuse to start where its states alone are."""
    checkpoint_every: Positive = 200
    """Optimiser steps between checkpoints."""
    keep_checkpoints: Positive = 2
    max_failures: int = Field(2, ge=0)
    """Worker failures that are restarted from the last checkpoint."""
    validation: ValidationConfig = ValidationConfig()
    """Validation while the student learns."""
    tracking: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Trackers of every step's numbers, besides metrics.jsonl. Addresses and keys are those tools' own environment
    variables (MLFLOW_TRACKING_URI, WANDB_API_KEY, ...)."""
    tracking_project: str = "steper_ray"
    """Project (Weights & Biases) or experiment (MLflow) that the run belongs to."""

    @property
    def teacher(self) -> str | None:
        """The model that gives distributions, a folder or hub name; None without `soft_targets`."""
        if self.soft_targets is None or self.soft_targets.teacher == BUILD:
            return None
        return self.student if self.soft_targets.teacher == SELF else self.soft_targets.teacher

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, dict) else None
        if not isinstance(name, str):
            return given
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: there are {', '.join(PRESETS)}")
        return PRESETS[name] | given

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_copy(cls, given: Any) -> Any:
        targets = given.get("soft_targets") if isinstance(given, dict) else None
        if isinstance(targets, dict) and given.get("method") == "on_policy":
            return {**given, "soft_targets": {"share": 1.0, **targets}}
        return given

    @model_validator(mode="after")
    def _bounds(self) -> TrainConfig:
        if self.log_sigma_bounds[0] >= self.log_sigma_bounds[1]:
            raise ValueError("log_sigma_bounds must be (low, high) with low < high")
        if self.attention == "flex" and not self.use_gpu:
            raise ValueError(
                "attention 'flex' has no backward pass on a CPU: set use_gpu=true, or attention=blocks"
            )
        if self.attention == "eager" and self.packing != "padded":
            raise ValueError(
                f"attention 'eager' sees all of a row: set packing=padded ({self.packing} is set)"
            )
        return self

    @model_validator(mode="after")
    def _steps(self) -> TrainConfig:
        if self.method == "vanilla_kd" and self.steps != "all":
            raise ValueError(
                f"method vanilla_kd learns the final step alone: steps={self.steps} goes with method steper"
            )
        return self

    @model_validator(mode="after")
    def _form(self) -> TrainConfig:
        if self.form == "chain":
            return self
        if self.method != "vanilla_kd":
            raise ValueError(f"form {self.form} has one step: set method=vanilla_kd ({self.method} is set)")
        if self.soft_targets is not None and self.soft_targets.teacher == BUILD:
            raise ValueError(
                f"form {self.form} is not what the teacher wrote: soft_targets.teacher=build goes with form=chain"
            )
        return self

    @model_validator(mode="after")
    def _on_policy(self) -> TrainConfig:
        stored = self.soft_targets is not None and self.soft_targets.teacher == BUILD
        if stored and self.method == "on_policy":
            raise ValueError(
                "soft_targets.teacher=build has said nothing about the student's own chains: name a model, or set "
                "method=steper"
            )
        if stored and self.soft_targets is not None and self.soft_targets.temperature != 1:
            raise ValueError(
                "soft_targets.teacher=build has the likeliest tokens alone, which cannot be softened: leave "
                "soft_targets.temperature out, or name a model"
            )
        if self.method != "on_policy":
            if self.soft_targets is not None and self.soft_targets.privileged:
                raise ValueError(
                    "soft_targets.privileged shows the teacher what is copied: set method=on_policy"
                )
            return self
        if self.soft_targets is None:
            raise ValueError(
                "method on_policy needs a teacher: set soft_targets.teacher to a model with the student's tokenizer"
            )
        if self.soft_targets.teacher == SELF and not self.soft_targets.privileged:
            raise ValueError(
                "soft_targets.teacher=self says what the student says: set soft_targets.privileged=true"
            )
        if self.soft_targets.share != 1:
            raise ValueError(
                "method on_policy has no chain of a teacher to copy: leave soft_targets.share out"
            )
        if self.on_policy.step_weights == "divergence" and self.packing != "tree":
            raise ValueError(
                "on_policy.step_weights=divergence compares the steps of a tree: set packing=tree "
                f"({self.packing} is set), or step_weights=equal"
            )
        if self.steps != "all":
            raise ValueError(f"method on_policy learns all steps: steps={self.steps} goes with method steper")
        return self
