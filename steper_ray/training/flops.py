"""FLOPs of a training step, and their share of a device's peak. Pure.

As in PaLM (Chowdhery et al., 2022, appendix B): a token costs 6 FLOPs a weight that it is multiplied with, forward and
backward together, and attention 12 a layer, key that it sees and element of the heads' width. Of the 6, forward is 2,
the gradient of what the weight is multiplied with 2, and that of the weight itself 2 (Kaplan et al., 2020, section
2.1). A weight that LoRA leaves frozen has no gradient and costs 4 ("LoRA Without Regret", Thinking Machines
Lab, 2025: two thirds of full fine-tuning, and the adapters). That below the first adapter nothing needs a gradient at
all, which saves a part of the first layer, is omitted.

Recomputing activations counts as nothing, so this is model FLOPs utilisation, not the hardware's. Unlike PaLM, where
each token of a sequence of length T counts T keys, only the keys that a token of a packed tree really sees are counted,
padding not at all, and the output layer for supervised tokens alone, the only ones it is run on. An adapter of the
input embedding is omitted, as the embedding is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from steper_ray.training.packing import Tree
from steper_ray.training.sizes import ModelSize, Weights

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


def step_flops(size: ModelSize, trees: Iterable[Tree]) -> float | None:
    """FLOPs of one forward and backward pass over the trees; None for a mixture of experts, which uses a part of its
    weights."""
    if size.experts:
        return None
    tokens = supervised = seen = 0
    for tree in trees:
        trunk = len(tree.trunk)
        tokens += len(tree)
        seen += trunk * (trunk + 1) // 2
        for branch in tree.branches:
            own = len(branch.prompt) + len(branch.target)
            supervised += len(branch.target)
            seen += own * branch.cut + own * (own + 1) // 2
    weights = _per_token(size.body) * tokens + _per_token(size.head) * supervised
    return weights + 12.0 * size.layers * size.heads * seen


def _per_token(weights: Weights) -> float:
    return 6.0 * weights.trained + 4.0 * weights.frozen


def peak_flops(device: str) -> float | None:
    """The peak of a device by its name, such as "NVIDIA A100-SXM4-80GB"; None where it is not known."""
    return next((peak for name, peak in PEAKS if re.search(rf"\b{name}\b", device)), None)
