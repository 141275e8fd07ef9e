"""Adapters on a tiny model, without DeepSpeed: what learns, what is refused, and what an export holds."""

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steper_ray.config import LoraConfig
from steper_ray.core.errors import TrainingError
from steper_ray.training.lora import add_adapters, save_adapters, save_merged


def model(tied=False, dtype=torch.float32):
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(shape, dtype=dtype)


def learned(adapted):
    """Its adapters as training leaves them: neither half is zero."""
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}


def logits(of):
    with torch.no_grad():
        return of.eval()(input_ids=torch.arange(20)[None]).logits


def test_all_linear_layers_but_the_outputs_get_adapters_in_the_models_dtype():
    adapted = add_adapters(model(dtype=torch.bfloat16), LoraConfig(rank=2), seed=3)
    learning = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 7 * 2
    assert not any("lm_head" in name or "embed" in name for name in learning)
    assert {parameter.dtype for parameter in learning.values()} == {torch.bfloat16}


def test_adapters_are_drawn_from_the_seed_and_change_nothing_at_first():
    ours, same, other = (add_adapters(model(), LoraConfig(), seed=seed) for seed in (3, 3, 4))
    drawn = [
        torch.cat([p.flatten() for n, p in m.named_parameters() if "lora_A" in n])
        for m in (ours, same, other)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(logits(ours), logits(model()))


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_one_of_two_tied_embeddings_gets_no_adapter(name):
    with pytest.raises(TrainingError, match=r"train.lora.target_modules: .* are one matrix"):
        add_adapters(model(tied=True), LoraConfig(target_modules=(name,)), seed=0)
    add_adapters(model(tied=False), LoraConfig(target_modules=(name,)), seed=0)


def test_modules_that_the_model_does_not_have_are_refused_by_name():
    with pytest.raises(TrainingError, match=r"train.lora.target_modules: .*query"):
        add_adapters(model(), LoraConfig(target_modules=("query",)), seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_and_unmerged_exports_are_the_trained_student(tmp_path, dtype):
    model(dtype=dtype).save_pretrained(tmp_path / "base")
    adapted = add_adapters(model(dtype=dtype), LoraConfig(rank=2), seed=0)
    state = learned(adapted)
    wanted, plain = logits(adapted).float(), logits(model(dtype=dtype)).float()
    save_adapters(tmp_path / "adapters", adapted, state)
    save_merged(tmp_path / "merged", str(tmp_path / "base"), adapted, state, dtype)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == dtype
    near = 1e-5 if dtype is torch.float32 else 0.1 * (wanted - plain).abs().max()
    for found in (merged, peft.PeftModel.from_pretrained(base, tmp_path / "adapters")):
        assert (logits(found).float() - wanted).abs().max() < near
