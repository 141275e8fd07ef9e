"""A vLLM engine's settings from the config, for an engine in process as for a deployed one. It imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steper_ray.config import EngineConfig
from steper_ray.core.errors import ModelError
from steper_ray.generation.tokens import tokenizer_name
from steper_ray.models import adapter_rank

#: What vLLM reads from its environment, unless that says otherwise: few lines, no statistics sent, and the room of
#: the key-value cache on a CPU, in GiB.
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}

#: The ranks that its kernels are made for; an adapter of another one is served in the room of the next.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

_CPU_BLOCK = 32  # the least that its kernels for CPUs take


def vllm_arguments(config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
    """Arguments of vLLM's engine, without the model and what depends on the caller. Raises ModelError."""
    return {
        "tokenizer": tokenizer_name(config),
        "trust_remote_code": config.trust_remote_code,
        "dtype": {"auto": "float32" if on_cpu else "bfloat16"}.get(config.dtype, config.dtype),
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_batch,
        "tensor_parallel_size": config.tensor_parallel_size,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enable_prefix_caching": True,
        # What is cached is cached in whole blocks; on a CPU vLLM's own are of 128 tokens, two passages.
        "block_size": _CPU_BLOCK if on_cpu else None,
        "enforce_eager": on_cpu,
        "use_tqdm_on_load": False,
        "enable_log_requests": False,
    }


def lora_arguments(adapters: Mapping[str, str], on_cpu: bool) -> dict[str, Any]:
    """Settings that let an engine serve these adapters' folders along with its model. Raises ModelError."""
    if not adapters:
        return {}
    rank = max(adapter_rank(folder) for folder in adapters.values())
    room = next((room for room in _RANKS if room >= rank), None)
    if room is None:
        raise ModelError(f"LoRA adapters of rank {rank}: vLLM serves up to rank {_RANKS[-1]}; merge them")
    # On a CPU vLLM 0.32 gives rows without an adapter, among rows with one, that of the last place: keep it empty.
    places = len(adapters) + (1 if on_cpu else 0)
    return {"enable_lora": True, "max_loras": places, "max_lora_rank": room}
