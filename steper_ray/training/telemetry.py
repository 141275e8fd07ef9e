"""The cost of a step: tokens and FLOPs a second, the share of the devices' peak, memory of rank 0. No Ray."""

from __future__ import annotations

import resource
from typing import Any

import torch

from steper_ray.config import TrainConfig
from steper_ray.schema.records import Cost
from steper_ray.training.data import Batch
from steper_ray.training.engine import Worker
from steper_ray.training.flops import peak_flops, step_flops
from steper_ray.training.memory import training_dtype
from steper_ray.training.sizes import model_size

_KIB = 1024


class Telemetry:
    """Of one training on one worker; `shape` is the model's config of transformers."""

    def __init__(self, shape: Any, config: TrainConfig, worker: Worker) -> None:
        self._size, self._worker = model_size(shape, config), worker
        on_gpu = worker.device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name(worker.device)) if on_gpu else None
        if on_gpu:  # the jobs of one worker group share a process
            torch.cuda.reset_peak_memory_stats(worker.device)
        # The peaks are those of bfloat16.
        self._peak = peak if training_dtype(config) is torch.bfloat16 else None

    def of_step(self, batch: Batch, seconds: float) -> Cost:
        """The fields of a step's record; None where a device or a model is not known well enough."""
        tokens = sum(item.tokens for item in batch.items)
        flops = step_flops(self._size, (tree for item in batch.items for tree in item.trees))
        speed = None if flops is None else flops / seconds
        known = speed is not None and self._peak is not None
        return {
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": speed,
            "mfu": speed / (self._worker.size * self._peak) if known else None,  # type: ignore[operator]
            "memory": {"device_peak": self._device_peak(), "host_peak": _host_peak()},
        }

    def _device_peak(self) -> int | None:
        """Most bytes of tensors that the device held since the training began."""
        if self._worker.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self._worker.device)


def _host_peak() -> int:
    """Most bytes of this process that lay in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
