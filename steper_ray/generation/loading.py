"""The embedded engine's model: loaded onto its device, checked, and the tokens that end its sequences."""

from __future__ import annotations

from typing import Any

import torch

from steper_ray.config import EngineConfig
from steper_ray.core.chat import end_of_turn
from steper_ray.core.errors import ModelError
from steper_ray.models import partial_attention, resolve_model
from steper_ray.pretrained import load_model


def load_for(config: EngineConfig) -> Any:
    """The engine's model on its device, ready to answer. Raises ModelError."""
    if config.tensor_parallel_size > 1:
        raise ModelError(
            "engine.tensor_parallel_size: the transformers engine uses one device; set engine.kind=vllm"
        )
    folder = resolve_model(config.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"auto": "bfloat16" if device == "cuda" else "float32"}.get(config.dtype, config.dtype)
    model = load_model(
        folder, config.trust_remote_code, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    _check(config, model.config.get_text_config())
    return model.to(device).eval()


def _check(config: EngineConfig, model_config: Any) -> None:
    """The slots hold full attention alone."""
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and config.max_model_len > limit:
        raise ModelError(
            f"model '{config.model}' takes {limit} tokens, engine.max_model_len is {config.max_model_len}: "
            f"set it to {limit} or less"
        )
    if kinds := partial_attention(model_config, config.max_model_len):
        raise ModelError(
            f"model '{config.model}' has layers of {', '.join(kinds)}, which the transformers engine does not run: "
            "set engine.kind=vllm"
        )


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a sequence: the tokenizer's, its chat template's, the model's, its generation config's."""
    ids = {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    for source in (model.generation_config, model.config):
        end = getattr(source, "eos_token_id", None)
        ids.update([end] if isinstance(end, int) else end or [])
    return frozenset(ids)
