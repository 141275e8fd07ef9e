"""How much a training step computes, and how much of a device's peak that is. Pure but for counting a model's weights.

As in PaLM (Chowdhery et al., 2022, appendix B): a token costs 6 FLOPs a weight that it is multiplied with, forward and
backward together, and attention 12 a layer, key that it sees and element of the heads' width. Recomputing activations
counts as nothing, so this is model FLOPs utilisation, not the hardware's. Unlike there, where each token of a sequence
of length T counts T keys, only the keys that a token of a packed tree really sees are counted, padding not at all, and
the output layer for supervised tokens alone, the only ones it is run on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from steper_ray.training.packing import Tree

#: Dense peak in FLOPs/s of bfloat16 with 32-bit accumulation, by the words of a device's name, from the vendors' data
#: sheets. The first that fits counts.
PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A40", 150e12),
    ("A10G", 70e12),
    ("A10", 125e12),
)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Weights of the layers and of the output, number of layers, and width of all query heads together."""

    body: int
    head: int
    layers: int
    width: int


def model_size(shape: Any) -> ModelSize | None:
    """Of a model with this config of transformers; None for a mixture of experts, which uses a part of its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    text = shape.get_text_config()
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    head = model.get_output_embeddings().weight
    outer = {id(w): w.numel() for w in (head, model.get_input_embeddings().weight)}
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        body=sum(p.numel() for p in model.parameters()) - sum(outer.values()),
        head=head.numel(),
        layers=text.num_hidden_layers,
        width=text.num_attention_heads * head_width,
    )


def step_flops(size: ModelSize, trees: Iterable[Tree]) -> float:
    """FLOPs of one forward and backward pass over the trees, all weights trained."""
    tokens = supervised = seen = 0
    for tree in trees:
        trunk = len(tree.trunk)
        tokens += len(tree)
        seen += trunk * (trunk + 1) // 2
        for branch in tree.branches:
            own = len(branch.prompt) + len(branch.target)
            supervised += len(branch.target)
            seen += own * branch.cut + own * (own + 1) // 2
    return 6.0 * (size.body * tokens + size.head * supervised) + 12.0 * size.layers * size.width * seen


def peak_flops(device: str) -> float | None:
    """The peak of a device by its name, such as "NVIDIA A100-SXM4-80GB"; None where it is not known."""
    return next((peak for name, peak in PEAKS if re.search(rf"\b{name}\b", device)), None)
