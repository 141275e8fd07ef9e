"""The miniature teacher at the cost of a larger model: it writes the same, and computes more for it.

Its 0.9 million parameters answer in a tenth of the time that anything around them takes, as no model does that is
served. Each layer's MLP gets further units that read what the others read, and whose outputs have the weight zero: so
prompts, chains and their lengths stay natural, prefill is bound by arithmetic, and decoding by the weights' size.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def widened(model: Path, folder: Path, units: int) -> Path:
    """The model with `units` in each layer's MLP, saved in `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    narrow = AutoModelForCausalLM.from_pretrained(model)
    config.intermediate_size = units
    torch.manual_seed(0)
    wide = AutoModelForCausalLM.from_config(config)
    weights = narrow.state_dict()
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            old = weights[name]
            if ".mlp.down_proj." in name:
                weight.zero_()
            weight[tuple(map(slice, old.shape))] = old
    wide.save_pretrained(folder)
    for file in model.glob("*token*"):
        shutil.copy(file, folder)
    return folder
