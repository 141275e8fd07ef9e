"""Presets of `train.preset`: how a student of a size is trained on a number of GPUs, or on a CPU.

A preset says how to run, never what is learned: neither objective, data, batch nor learning rate. What is set beside
it wins. tests/unit/test_training_memory.py holds each of them against its GPU by the estimate of training/memory.py.
"""

from __future__ import annotations

from typing import Any

#: Sizes of students, and the memory in GB of the GPUs that their presets are for.
GPU_GB = {"0.5b": 24, "1.5b": 24, "3b": 80, "7b": 80, "8b": 80}
#: Those whose states no single one of these GPUs holds: one GPU leaves Adam's to the host.
_OFFLOADED = ("1.5b", "7b", "8b")
#: A trajectory of five steps with four passages each has about 4,000 tokens.
_ROWS = {"row_tokens": 8192, "rows_per_micro_batch": 1, "gradient_checkpointing": True}


def _on_gpus(size: str, gpus: int) -> dict[str, Any]:
    offload = gpus == 1 and size in _OFFLOADED
    return _ROWS | {
        "use_gpu": True,
        "workers": gpus,
        "zero_stage": 2 if gpus == 1 else 3,  # alone, stage 3 would only gather weights that are here anyway
        "offload": offload,
        "num_cpus": 8 if offload else 4,  # Adam then runs on them
    }


#: The settings of each preset by its name, such as `8b-4gpu`.
PRESETS: dict[str, dict[str, Any]] = {
    f"{size}-{gpus}gpu": _on_gpus(size, gpus) for size in GPU_GB for gpus in (1, 4, 8)
} | {
    # One process with threads: workers of one machine would share its memory, and hold more of it between them.
    "cpu": _ROWS | {"use_gpu": False, "workers": 1, "zero_stage": 0, "offload": False, "num_cpus": 4}
}
