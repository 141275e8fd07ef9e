"""FLOPs of a step, counted by torch on a real model, and the peaks of devices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from steper_ray.training.flops import ModelSize, model_size, peak_flops, step_flops
from steper_ray.training.packing import Branch, Tree


def shape(**settings):
    return AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        **settings,
    )


def plain(tokens, supervised):
    """One branch alone: a trunk of one token."""
    return Tree([1], (Branch(1, [1] * (tokens - 1 - supervised), [1] * supervised, 0),))


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_size_leaves_the_embedding_out(tied):
    config = shape(tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    size = model_size(config)
    layers = sum(
        p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name
    )
    assert size == ModelSize(body=layers, head=64 * 32, layers=2, width=4 * 16)


def test_a_steps_flops_are_those_that_torch_counts_but_for_keys_that_nobody_sees():
    config = shape(attn_implementation="eager")
    model, length = AutoModelForCausalLM.from_config(config), 40
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(1, length, dtype=torch.long), use_cache=False).logits.sum().backward()
    size = model_size(config)
    ours = step_flops(size, [plain(length, supervised=length - 1)])
    # Eager attention multiplies every query with every key, of which a causal model sees (length + 1) / 2.
    ours += 12 * size.layers * size.width * length * (length - 1) / 2
    # The first token has no target, and torch counts no norms.
    ours += 6 * size.head - 6 * length * sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert counter.get_total_flops() == ours


def test_a_tree_costs_less_than_its_examples_apart_and_each_example_as_much():
    size = ModelSize(body=1000, head=100, layers=2, width=8)
    trunk = [1] * 30
    branches = (Branch(10, [1] * 3, [1] * 4, 0), Branch(30, [1] * 3, [1] * 5, 2))
    apart = [Tree(trunk[: branch.cut], (branch,)) for branch in branches]
    shared = 10 * 6.0 * size.body + 12.0 * size.layers * size.width * (10 * 11 // 2)
    whole = step_flops(size, [Tree(trunk, branches)])
    assert whole == step_flops(size, apart) - shared
    # By hand: 45 tokens, 9 supervised; the trunk sees 465 keys, the branches 7 * 10 + 28 and 8 * 30 + 36.
    assert whole == 6.0 * (1000 * 45 + 100 * 9) + 12.0 * 2 * 8 * (465 + 98 + 276)


def test_a_mixture_of_experts_has_no_size():
    config = AutoConfig.for_model("mixtral", hidden_size=32, num_hidden_layers=1, num_local_experts=4)
    assert model_size(config) is None


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX A1000", None),
        ("cpu", None),
    ],
)
def test_a_devices_peak_is_known_by_its_name_or_not_at_all(device, teraflops):
    assert peak_flops(device) == (teraflops and teraflops * 1e12)
