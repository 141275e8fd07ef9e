"""The sizes of a model, counted from its config alone, for the estimates of memory and of work.

The model is built on torch's meta device, where weights have shapes and no memory. No Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from steper_ray.config import TrainConfig
from steper_ray.training.lora import add_adapters

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Weights:
    """How many weights learn, and how many stay as they are."""

    trained: int
    frozen: int = 0


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Of one model and what of it is trained. Widths are in elements."""

    parameters: int
    """Without adapters."""
    trainable: int
    largest: int
    """Parameters of the largest matrix that learns."""
    body: Weights
    """Parameters that every token is multiplied with: all but the input embedding and the output layer."""
    head: Weights
    """The output layer, also where it is the input embedding."""
    layers: int
    hidden: int
    heads: int
    """Width of all query heads together."""
    inner: int
    """Width between an MLP's matrices."""
    vocabulary: int
    experts: bool
    """Whether a token passes only some of the weights (a mixture of experts)."""
    scores: int = 0
    """Heads whose attention keeps a score for each pair of tokens: no fused kernel takes them."""


def model_size(shape: Any, config: TrainConfig) -> ModelSize:
    """Sizes of the model of a transformers config, trained as `config` says. Raises TrainingError as LoRA may."""
    text = shape.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, trust_remote_code=config.trust_remote_code)
        parameters = sum(p.numel() for p in model.parameters())
        if config.lora is not None:
            model = add_adapters(model, config.lora, config.seed)
    learned = [p.numel() for p in model.parameters() if p.requires_grad]
    head = list(model.get_output_embeddings().parameters())
    outer = {id(p) for p in (*head, *model.get_input_embeddings().parameters())}
    queries = getattr(text, "num_attention_heads", None) or 1  # a state-space model has none
    width = getattr(text, "head_dim", None) or text.hidden_size // queries
    return ModelSize(
        parameters=parameters,
        trainable=sum(learned),
        largest=max(learned),
        body=_weights(p for p in model.parameters() if id(p) not in outer),
        head=_weights(head),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=queries * width,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        experts=any(getattr(text, name, None) for name in _EXPERTS),
        scores=queries if _keeps_scores(text, config) else 0,
    )


def _keeps_scores(text: Any, config: TrainConfig) -> bool:
    """Whether no fused kernel runs the attention: eager, or capped scores (Gemma 2) or attention sinks (gpt-oss)."""
    if config.attention in ("eager", "flex"):
        return config.attention == "eager"
    return bool(getattr(text, "attn_logit_softcapping", None)) or text.model_type == "gpt_oss"


def _weights(parameters: Iterable[torch.nn.Parameter]) -> Weights:
    trained = frozen = 0
    for parameter in parameters:
        if parameter.requires_grad:
            trained += parameter.numel()
        else:
            frozen += parameter.numel()
    return Weights(trained, frozen)
