"""LoRA adapters (PEFT) on a frozen student, exported separately or merged.

The base of an export is read from the model's folder again: it has not changed, so it is neither gathered nor saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from steper_ray.config import LoraConfig
from steper_ray.core.errors import TrainingError
from steper_ray.pretrained import load_model
from steper_ray.training.checkpoints import WriteError


def add_adapters(student: Any, config: LoraConfig, seed: int) -> Any:
    """The student as a PeftModel whose adapters alone learn, in the dtype of its weights; drawn from `seed`.

    Raises TrainingError where `target_modules` names none of its modules, or weights that two modules share.
    """
    import peft  # seconds

    targets = config.target_modules
    wanted = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    torch.manual_seed(seed)
    try:
        # One dtype for all: DeepSpeed keeps the float32 masters, and ZeRO-3 takes no mixture.
        adapted = peft.get_peft_model(student, wanted, autocast_adapter_dtype=False)
    except ValueError as error:
        raise TrainingError(f"train.lora.target_modules: {error}") from error
    ends = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
    if student.config.get_text_config().tie_word_embeddings and any(hasattr(end, "lora_A") for end in ends):
        raise TrainingError(
            "train.lora.target_modules: this model's input and output embeddings are one matrix, and an adapter on "
            "one of them cannot be merged into both: leave them out"
        )
    return adapted


def save_adapters(folder: Path, adapted: Any, state: dict[str, torch.Tensor]) -> None:
    """The adapters' folder as PEFT writes it. `state` holds what learned, by its names in `adapted`."""
    # "auto" would look the base up on the hub to see whether its vocabulary was resized; here it never is.
    adapted.save_pretrained(folder, state_dict=state, save_embedding_layers=False)


def save_merged(
    folder: Path,
    base: str,
    adapted: Any,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype,
    trusted: bool = False,
) -> None:
    """The model of folder or name `base` with the adapters merged in, whole, in `dtype`. Needs its memory once.

    Raises WriteError where they do not fit it.
    """
    import peft

    model = load_model(base, trusted, dtype=dtype)
    # Its own adapters are float32: their product is then rounded once, when it is added.
    merging = peft.get_peft_model(model, adapted.peft_config["default"])
    adapters = peft.get_peft_model_state_dict(adapted, state_dict=state, save_embedding_layers=False)
    loaded = peft.set_peft_model_state_dict(merging, adapters)
    left = [name for name in loaded.missing_keys if "lora_" in name]
    if left or loaded.unexpected_keys:
        raise WriteError(f"{base}: its adapters do not fit it: {(left or loaded.unexpected_keys)[:3]}")
    merging.merge_and_unload(safe_merge=True).save_pretrained(folder)
