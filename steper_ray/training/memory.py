"""Memory that one worker needs to train a student, estimated from the model's config and the settings alone.

Model states as in ZeRO (Rajbhandari et al., arXiv 1910.02054, section 3: 16 bytes a parameter and more, divided by the
workers from stage 1, 2 or 3 on), with what DeepSpeed's `estimate_zero2|3_model_states_mem_needs` leave out: float32
accumulation of gradients, the layers that are gathered, the update's own temporaries. Activations are counted tensor
by tensor in the way of Korthikanti et al. (arXiv 2205.05198, section 4), for layers as transformers writes those of
Llama, Qwen and Mistral: RMS norms in float32, a gated MLP, attention that keeps no scores. No Ray, no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steper_ray.config import TrainConfig
from steper_ray.training.sizes import ModelSize

#: Up to this many parameters the model stays whole on every worker between steps: gathering and releasing it
#: module by module costs more than it saves.
SMALL = 100_000_000
#: Parameters of a larger one that ZeRO-3 may keep gathered at once, and elements it updates at once: DeepSpeed's own.
LIVE = SUB_GROUP = 10**9
#: Share of a row's tokens that is learned, taken for the logits: five steps with the paper's chains learn about an
#: eighth of their tree, questions of two steps with short passages a quarter.
SUPERVISED = 0.25
#: What a process takes besides: imports on the host; CUDA's context, NCCL's and cuBLAS' buffers on a GPU.
_PROCESS, _GPU_PROCESS, _CUDA = 1e9, 4e9, 1.5e9
#: Pinned memory is handed out in powers of two: between nothing and as much again.
_PINNED = 1.5


def training_dtype(config: TrainConfig) -> torch.dtype:
    """`auto`: bfloat16 (with float32 master weights) on a GPU, float32 on a CPU."""
    if config.dtype == "auto":
        return torch.bfloat16 if config.use_gpu else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of one worker. The work of a forward and backward pass and that of the update are not there at once."""

    parameters: float
    gradients: float
    optimizer: float
    work: float
    update: float
    process: float
    host: float
    """On the host of a GPU worker; 0 where the worker is its host's."""

    @property
    def device(self) -> float:
        """The peak on the GPU, or of the process on a CPU."""
        states = self.parameters + self.gradients + self.optimizer
        return states + max(self.work, self.update) + self.process


def estimate_memory(size: ModelSize, config: TrainConfig, teacher: int = 0) -> Estimate:
    """The estimate for one of `config.workers` workers; `teacher` are the parameters of `soft_targets.teacher`."""
    wide = training_dtype(config) is torch.float32
    width, stage, n = 4 if wide else 2, config.zero_stage, config.workers
    small = size.parameters <= SMALL
    part = size.trainable / (n if stage >= 1 else 1)
    at_once = min(part, SUB_GROUP) if stage == 3 else part
    # Stage 3 updates its float32 partition in place, the others a copy of theirs.
    master = 0.0 if wide and stage in (0, 3) else 4 * part
    moments = 8 * part
    gradients = 4.0 * (size.trainable if stage < 2 else part)
    held = float(width * size.parameters)
    live = 0.0
    if stage == 3:
        gradients += 4 * at_once  # those being applied, flat
        held /= n
        live = float(width * (size.parameters if small else min(size.parameters, LIVE)))
    # Adam's denominator, of one tensor after the other or of all at once; stages 1 and 2 take as much again on a CPU,
    # and in float32, where they flatten the gradients.
    if stage == 0 and not config.use_gpu:
        update = 8.0 * size.largest
    else:
        update = at_once * (8.0 if stage in (1, 2) and (wide or not config.use_gpu) else 4.0)
    if teacher:
        parted = stage == 3 and teacher > SMALL
        live += float(width * (teacher / n + min(teacher, LIVE) if parted else teacher))
    if config.method == "on_policy":  # the copy of the student that is asked
        live += float(width * size.parameters)
    host = 0.0
    if config.offload:
        # Stage 3 keeps the sums of gradients there too, and the update's; stage 2 sums them up on the device.
        host = master + moments + _PINNED * (gradients if stage == 3 else 4 * part) + _PINNED * width * part
        if stage == 3:
            host += _PINNED * (held - width * part)
            held = gradients = 0.0
        master = moments = update = 0.0
    exported = width * size.parameters  # whole, on the first worker's host, when nothing else runs any more
    # Buckets of gradients being reduced: one that stays (two where it overlaps), and two more while it is reduced.
    bucket = width * (size.parameters if small else size.hidden**2)
    backward = activations(size, config) + (1 + bool(teacher)) * logits(size, config) + width * size.largest
    work = bucket * (2 if config.use_gpu else 1) + max(backward, 2 * bucket)
    return Estimate(
        parameters=held + live,
        gradients=gradients,
        optimizer=master + moments,
        work=work if config.use_gpu else max(work, exported),
        update=update,
        process=_CUDA if config.use_gpu else _PROCESS,
        host=host + exported + _GPU_PROCESS if config.use_gpu else 0.0,
    )


def activations(size: ModelSize, config: TrainConfig) -> float:
    """Activation bytes kept for backward, plus one layer's working memory."""
    width = 4 if training_dtype(config) is torch.float32 else 2
    tokens = config.row_tokens * config.rows_per_micro_batch
    hidden, heads, inner = size.hidden, size.heads, size.inner
    # Of a layer: of each norm its input in float32, what it is before and after the scale; queries, keys and values
    # (as many as queries: masked attention repeats them), the output as it comes and as it is joined; the MLP's gate
    # before and after its activation, its other half, and their product.
    layer = 1.0 * tokens * (2 * (4 * hidden + 2 * width * hidden) + width * (5 * heads + 4 * inner))
    # The additive mask: one for all layers, or what each layer makes of its boolean ones and keeps.
    seen = config.row_tokens**2 * config.rows_per_micro_batch
    mask = width * seen if config.attention in ("dense", "eager") else 0
    layer += 0 if mask else width * seen * SUPERVISED
    # Scores once they are capped, and their softmax in float32 and in the dtype of the model.
    layer += size.scores * seen * (2 * width + 4)
    if config.lora is not None and config.lora.dropout:
        layer += tokens * width * (2 * (4 * hidden + heads + 2 * hidden + inner))
    backward = tokens * width * 3 * inner
    if config.gradient_checkpointing:
        return size.layers * tokens * width * hidden + layer + backward + mask
    return size.layers * layer + backward + mask


def logits(size: ModelSize, config: TrainConfig) -> float:
    """Bytes of the supervised tokens' logits: twice in their dtype and twice in float32, or thrice in float32."""
    rows = config.rows_per_micro_batch
    # The columns that any row learns at are computed for every row.
    columns = config.row_tokens * min(1.0, SUPERVISED * rows)
    return 12.0 * rows * columns * size.vocabulary
