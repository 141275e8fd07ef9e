"""Whether a student fits: the estimate as a table, against what a worker has, and what would help where it does not."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steper_ray.config import LoraConfig, TrainConfig
from steper_ray.core.errors import ModelError, TrainingError
from steper_ray.models import resolve_model
from steper_ray.pretrained import load_shape
from steper_ray.training.memory import Estimate, estimate_memory, training_dtype
from steper_ray.training.sizes import model_size

logger = logging.getLogger(__name__)

#: Ray ends the workers of a host that is fuller than this.
_HOST_SHARE = 0.95
#: Suggest a change only if what remains is at most this share of the need.
_HELP = 0.99
#: Rows below this are not halved.
_FEW_TOKENS = 1024
#: Where a container's memory limit stands: control groups version 2, and 1.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one worker has: on its GPU, or of its host on a CPU; and of its host."""

    device: float
    host: float


def worker_memory(device: torch.device, on_this_host: int) -> Memory:
    """Memory of this worker, one of `on_this_host` equal ones."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        int(text) for file in _LIMITS if file.is_file() and (text := file.read_text().strip()).isdigit()
    ]
    host = _HOST_SHARE * min([total, *limits]) / on_this_host
    if device.type == "cuda":
        return Memory(torch.cuda.get_device_properties(device).total_memory, host)
    return Memory(host, host)


def describe(shape: Any, config: TrainConfig) -> str:
    """The estimate for a model's config as a table of four lines."""
    size = model_size(shape, config)
    need = estimate_memory(size, config, _teacher(config))
    learn = "all" if config.lora is None else _count(size.trainable)
    offload = ", offloaded" if config.offload else ""
    checkpointing = "with" if config.gradient_checkpointing else "without"
    return "\n".join(
        [
            f"memory of each of {config.workers} worker{'s' if config.workers > 1 else ''}, estimated: "
            f"{_count(size.parameters)} parameters ({learn} learn), ZeRO stage {config.zero_stage}{offload}, "
            f"{str(training_dtype(config)).removeprefix('torch.')}",
            f"  states    parameters {_gb(need.parameters)}, gradients {_gb(need.gradients)}, "
            f"optimiser {_gb(need.optimizer)}",
            f"  at work   forward and backward {_gb(need.work)} ({config.rows_per_micro_batch} x {config.row_tokens} "
            f"tokens, {checkpointing} checkpointing), or update {_gb(need.update)}; process {_gb(need.process)}",
            f"  together  {_needs(need, config)}",
        ]
    )


def print_estimates(students: Sequence[tuple[str, TrainConfig]]) -> None:
    """Each table once on stderr, of models (folders or names) and how they are trained."""
    shown = []
    for model, config in students:
        try:
            table = describe(load_shape(model, config.trust_remote_code), config)
        # The workers may see what this machine does not; a config of an unknown kind they name.
        except ModelError:
            table = f"memory of a worker: no estimate, {model} cannot be read from here"
        if table not in shown:
            shown.append(table)
            print(table, file=sys.stderr)


def check_fit(shape: Any, config: TrainConfig, have: Memory) -> None:
    """Warns where the estimate is more than a worker has, with what would help and how far.

    Raises TrainingError where that is certain: parameters, gradients and optimiser alone are more. What a step takes
    beside them is an estimate.
    """
    need = _estimate(shape, config)
    if _excess(need, have) <= 1:
        return
    helped = [(change, _estimate(shape, config.model_copy(update=change))) for change in _changes(config)]
    helped = [(change, less) for change, less in helped if _excess(less, have) < _HELP * _excess(need, have)]
    if not any(_excess(less, have) <= 1 for _, less in helped):
        both = {name: value for change, _ in helped for name, value in change.items()}
        helped.append((both, _estimate(shape, config.model_copy(update=both))))
    lines = [
        f"\n  {' '.join(f'train.{name}={_value(value)}' for name, value in change.items())}: {_needs(less, config)}"
        f"{'' if _excess(less, have) <= 1 else ', still too much'}"
        for change, less in helped
    ]
    host = f" and {_gb(have.host)} of host memory" if config.use_gpu else ""
    states = need.parameters + need.gradients + need.optimizer
    certain = states > have.device
    message = (
        f"{config.student} {'does not fit' if certain else 'may not fit'}: each worker needs about "
        f"{_needs(need, config)}, {_gb(states)} of it for the states, and has {_gb(have.device)}{host}. What helps:"
        f"{''.join(lines)}\nMore workers help on GPUs or machines of their own; fewer row tokens leave out longer "
        "trajectories. train.check_memory=false goes ahead in silence"
    )
    if certain:
        raise TrainingError(message)
    logger.warning(message)


def _changes(config: TrainConfig) -> list[dict[str, Any]]:
    """Single steps towards less memory, those that leave the student as it is first."""
    changes: list[dict[str, Any]] = []
    if not config.gradient_checkpointing:
        changes.append({"gradient_checkpointing": True})
    if config.rows_per_micro_batch > 1:
        changes.append({"rows_per_micro_batch": 1})
    if config.zero_stage < 3 and config.workers > 1:
        changes.append({"zero_stage": 3})
    if config.use_gpu:
        changes.append({"offload": not config.offload})
    more = {} if config.zero_stage == 3 else {"zero_stage": 3}
    changes.extend(more | {"workers": config.workers * times} for times in (2, 4, 8))
    if config.row_tokens >= _FEW_TOKENS:
        changes.append({"row_tokens": config.row_tokens // 2})
    if config.lora is None:
        changes.append({"lora": LoraConfig()})
    return changes


def _estimate(shape: Any, config: TrainConfig) -> Estimate:
    return estimate_memory(model_size(shape, config), config, _teacher(config))


def _teacher(config: TrainConfig) -> int:
    """The parameters of the teacher that is in memory beside the student; 0 without one. Raises ModelError."""
    if config.teacher is None:
        return 0
    shape = load_shape(resolve_model(config.teacher), config.trust_remote_code)
    return model_size(shape, config.model_copy(update={"lora": None})).parameters


def _value(value: Any) -> str:
    return "{}" if isinstance(value, LoraConfig) else str(value).lower()


def _excess(need: Estimate, have: Memory) -> float:
    return max(need.device / have.device, need.host / have.host)


def _needs(need: Estimate, config: TrainConfig) -> str:
    if not config.use_gpu:
        return f"{_gb(need.device)} of memory"
    return f"{_gb(need.device)} of GPU memory and {_gb(need.host)} of its host's"


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
