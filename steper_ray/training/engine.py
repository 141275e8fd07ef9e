"""The student inside DeepSpeed: made from a model folder, run, stepped, saved, loaded, gathered and let go.

It knows neither the objective nor the data. Gradients: `backward` takes this worker's share of a sum over the
global batch, and what the optimiser sees is the gradient of exactly that sum. DeepSpeed divides by the number of
workers (and by its gradient accumulation, which is 1 here); `backward` multiplies by it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.pretrained import load_model, load_shape
from steper_ray.training.fit import Memory, check_fit, worker_memory
from steper_ray.training.forward import Forward
from steper_ray.training.lora import add_adapters
from steper_ray.training.memory import LIVE, SMALL, SUB_GROUP, training_dtype
from steper_ray.training.sizes import model_size

#: The folder below a checkpoint that DeepSpeed writes.
TAG = "state"


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of the group; `local_size` of them share its host."""

    rank: int
    size: int
    device: torch.device
    local_size: int = 1


def _least(worker: Worker) -> Memory:
    """Memory of the worker with the least, so that all reach the same verdict."""
    own = worker_memory(worker.device, worker.local_size)
    least = torch.tensor([own.device, own.host], dtype=torch.float64, device=worker.device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return Memory(*least.tolist())


def deepspeed_config(config: TrainConfig, parameters: int, width: int) -> dict[str, Any]:
    """DeepSpeed's config for a model of `parameters` parameters and hidden size `width`.

    Buckets of about a layer's matrix (width^2) for large models, as transformers' "auto" values have it. A small
    model is persistent, and reduced in one bucket.
    """
    small = parameters <= SMALL
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": config.use_gpu,
        "reduce_bucket_size": max(parameters, 1) if small else width * width,
    }
    if config.zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": parameters if small else 10 * width,
            "stage3_prefetch_bucket_size": 0 if small else int(0.9 * width * width),
            "stage3_max_live_parameters": LIVE,
            "stage3_max_reuse_distance": LIVE,
            "sub_group_size": SUB_GROUP,
        }
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if config.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip_norm,
        "steps_per_print": 10**12,
        "zero_optimization": zero,
    }
    if training_dtype(config) is torch.bfloat16:
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return settings


class Engine(Forward):
    """One student on all workers, which call every method together; `losses` need it under ZeRO-3 alone."""

    def __init__(self, model: str, config: TrainConfig, worker: Worker) -> None:
        import deepspeed  # seconds, and it looks for the accelerator when imported

        deepspeed.utils.logger.setLevel(logging.WARNING)
        # Without it the first engine compiles an op for inference with g++ for a minute. Training has no use for it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._worker, self._deepspeed = worker, deepspeed
        shape = load_shape(model, config.trust_remote_code)
        if config.check_memory:
            check_fit(shape, config, _least(worker))
        parameters = model_size(shape, config).parameters
        settings = deepspeed_config(config, parameters, shape.get_text_config().hidden_size)
        student = _load(model, config, settings if parameters > SMALL else None)
        self._engine, _, _, _ = deepspeed.initialize(
            model=student, optimizer=_optimizer(student, config), config=settings
        )
        self._engine.train()
        super().__init__(
            self._engine, self._engine.module, config.attention, training_dtype(config), worker.device
        )
        self._stage = config.zero_stage
        self._adapters_only = config.lora is not None

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the gradient of this worker's share; `last` marks the step's last micro-batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._worker.size)
        if self._worker.device.type == "cpu":
            _give_back_freed()

    def step(self, lr: float) -> float | None:
        """One optimiser step at `lr`; returns the global gradient norm before clipping, where the stage reports it."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Writes this worker's shard, and `state` with it, below `folder`. A frozen base is omitted."""
        self._engine.save_checkpoint(
            str(folder), tag=TAG, client_state=state, exclude_frozen_parameters=self._adapters_only
        )

    def load(self, folder: Path) -> dict[str, Any]:
        """Restores the shards of all workers from one folder; returns the `state` that was saved with them.

        A folder that `resharding` converted is known by its layout.
        """
        self._engine._config.load_universal_checkpoint = (folder / TAG / "zero").is_dir()
        # What the checkpoint leaves out stays as it was read from the model's folder.
        _, state = self._engine.load_checkpoint(
            str(folder), tag=TAG, load_module_strict=not self._adapters_only
        )
        return dict(state)

    def whole_state(self) -> dict[str, torch.Tensor]:
        """The full weights on rank 0's CPU, or the adapters' where they alone learn; empty on the other ranks."""
        if self._adapters_only:
            learned = {n: p for n, p in self._engine.module.named_parameters() if p.requires_grad}
            with self._deepspeed.zero.GatheredParameters(list(learned.values())):
                return {} if self._worker.rank else {n: p.detach().cpu().clone() for n, p in learned.items()}
        if self._stage == 3:
            return self._engine._zero3_consolidated_16bit_state_dict() or {}
        if self._worker.rank:  # every worker of a host would hold a copy
            return {}
        return {name: value.detach().cpu() for name, value in self._engine.module.state_dict().items()}

    def plain_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What learns, whole on every worker, weight by weight, by its name in the plain model; adapters merged in."""
        if not self._adapters_only:
            for name, weight in self._engine.module.named_parameters():
                with self._deepspeed.zero.GatheredParameters([weight]):
                    yield name, weight.detach()
            return
        for name, layer in self._engine.module.named_modules():
            if hasattr(layer, "get_delta_weight"):
                with self._deepspeed.zero.GatheredParameters(list(layer.parameters())), torch.no_grad():
                    base: torch.Tensor = layer.get_base_layer().weight
                    plain = name.removeprefix("base_model.model.")
                    yield f"{plain}.weight", base + layer.get_delta_weight("default")

    def close(self) -> None:
        """Frees the memory of weights, gradients and optimiser state, so that another engine has it.

        Hooks that ZeRO-3 leaves on the autograd graph keep its objects alive, so their storages are emptied.
        """
        self._engine.destroy()
        if self._stage == 3:
            optimizer = self._engine.optimizer
            held = (list(self._engine.module.parameters()), vars(optimizer), optimizer.state)
            for storage in (tensor.untyped_storage() for tensor in _tensors(held)):
                if storage.resizable():  # frozen weights may be mapped from their file
                    storage.resize_(0)
        self._engine = self._module = None
        del self._run
        gc.collect()
        if self._worker.device.type == "cuda":
            torch.cuda.empty_cache()


def _give_back_freed() -> None:
    """Returns freed memory to the system: glibc keeps what rows of other lengths left, in an arena for each thread."""
    with suppress(AttributeError):  # musl and macOS have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def _tensors(held: object) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts, with their gradients and ZeRO-3's shards of parameters."""
    if isinstance(held, torch.Tensor):
        yield held
        yield from _tensors([held.grad if held.is_leaf else None, getattr(held, "ds_tensor", None)])
    elif isinstance(held, Mapping):
        yield from _tensors(list(held.values()))
    elif isinstance(held, list | tuple):
        for part in held:
            yield from _tensors(part)


def load_whole_or_parts(model: str, config: TrainConfig, settings: dict[str, Any] | None) -> Any:
    """A model with eager attention, which every one has. With `settings` and ZeRO-3 no worker ever holds all of it."""
    partition = HfDeepSpeedConfig(settings) if settings is not None and config.zero_stage == 3 else None
    try:
        return load_model(
            model, config.trust_remote_code, dtype=training_dtype(config), attn_implementation="eager"
        )
    finally:
        if partition is not None:  # it is global to the process, and the next job may be another model
            unset_hf_deepspeed_config()


def _load(model: str, config: TrainConfig, settings: dict[str, Any] | None) -> Any:
    """The student to train."""
    student = load_whole_or_parts(model, config, settings)
    student.config.use_cache = False
    if _uses_liger(config):
        from transformers.integrations import apply_liger_kernel  # and with it peft: a second and a half

        # Without its fused loss, which gives one number for a batch: the objective needs one for each example.
        apply_liger_kernel(student, {"fused_linear_cross_entropy": False, "cross_entropy": False})
    if config.gradient_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return student if config.lora is None else add_adapters(student, config.lora, config.seed)


def _uses_liger(config: TrainConfig) -> bool:
    """Raises TrainingError where it is asked for and not installed."""
    installed = find_spec("liger_kernel") is not None
    if config.liger is True and not installed:
        raise TrainingError(
            "train.liger=true, and liger-kernel is not installed: install the extra `gpu`, or set train.liger=auto"
        )
    return config.use_gpu and installed and config.liger is not False


def _optimizer(student: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if config.offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        offloaded: torch.optim.Optimizer = DeepSpeedCPUAdam(
            learned, lr=config.lr, weight_decay=config.weight_decay
        )
        return offloaded
    return torch.optim.AdamW(learned, lr=config.lr, weight_decay=config.weight_decay)
