"""FLOPs of a step, counted by torch on a real model, and the peaks of devices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from steper_ray.config import TrainConfig
from steper_ray.training.flops import peak_flops, step_flops
from steper_ray.training.lora import add_adapters
from steper_ray.training.packing import Branch, Tree
from steper_ray.training.sizes import ModelSize, Weights, model_size


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


def sized(body, head):
    """Two layers whose heads are 8 wide together; the rest plays no part here."""
    return ModelSize(
        parameters=0,
        trainable=0,
        largest=0,
        body=body,
        head=head,
        layers=2,
        hidden=0,
        heads=8,
        inner=0,
        vocabulary=0,
        experts=False,
    )


def plain(tokens, supervised):
    """One branch alone: a trunk of one token."""
    return Tree([1], (Branch(1, [1] * (tokens - 1 - supervised), [1] * supervised, 0),))


#: A layer of `shape()` by hand: queries and output, keys and values, three of the MLP, two norms.
QUERIES, KEYS, MLP = 32 * 64, 32 * 32, 32 * 48
LAYER = 2 * QUERIES + 2 * KEYS + 3 * MLP + 2 * 32
HEAD = 64 * 32
LORA = {"rank": 4, "target_modules": ["q_proj", "down_proj"]}


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_size_leaves_the_embedding_out(tied):
    size = model_size(shape(tie_word_embeddings=tied), TrainConfig())
    assert size.body == Weights(trained=2 * LAYER + 32)
    assert size.head == Weights(trained=HEAD)
    assert (size.layers, size.heads) == (2, 4 * 16)


@pytest.mark.parametrize("tied", [True, False])
def test_beside_adapters_all_weights_are_frozen(tied):
    size = model_size(shape(tie_word_embeddings=tied), TrainConfig(lora=LORA))
    assert size.body == Weights(trained=2 * 4 * ((32 + 64) + (48 + 32)), frozen=2 * LAYER + 32)
    assert size.head == Weights(trained=0, frozen=HEAD)


def test_an_adapter_of_the_output_layer_is_run_on_supervised_tokens_alone():
    lora = {"rank": 4, "target_modules": ["lm_head"]}
    size = model_size(shape(tie_word_embeddings=False), TrainConfig(lora=lora))
    assert size.body == Weights(trained=0, frozen=2 * LAYER + 32)
    assert size.head == Weights(trained=4 * (32 + 64), frozen=HEAD)


def counted(model, length):
    """FLOPs that torch counts of one sequence of this model, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(1, length, dtype=torch.long), use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


def unseen(size, length):
    """What eager attention computes besides: it multiplies every query with every key, of which a causal model sees
    (length + 1) / 2."""
    return 12 * size.layers * size.heads * length * (length - 1) / 2


def test_a_steps_flops_are_those_that_torch_counts_but_for_keys_that_nobody_sees():
    config, length = shape(attn_implementation="eager"), 40
    size = model_size(config, TrainConfig())
    ours = step_flops(size, [plain(length, supervised=length - 1)]) + unseen(size, length)
    # The first token has no target, and torch counts no norms.
    ours += 6 * HEAD - 6 * length * (2 * 2 + 1) * 32
    assert counted(AutoModelForCausalLM.from_config(config), length) == ours


def test_with_adapters_torch_counts_no_gradients_of_frozen_weights_either():
    config, length = shape(attn_implementation="eager"), 40
    adapters = TrainConfig(lora={"rank": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]})
    size = model_size(config, adapters)
    ours = step_flops(size, [plain(length, supervised=length - 1)]) + unseen(size, length)
    ours += 4 * HEAD - 4 * length * (2 * 2 + 1) * 32
    # What goes into the first layer's queries, keys and values comes from the embedding and needs no gradient.
    ours -= 2 * length * (QUERIES + 2 * KEYS + 3 * 4 * 32)
    model = add_adapters(AutoModelForCausalLM.from_config(config), adapters.lora, 0)
    assert counted(model, length) == ours


def test_frozen_weights_cost_two_thirds_of_trained_ones():
    # 4 tokens, 2 of them supervised; they see 1 + 2 + 3 + 4 keys.
    tree = plain(4, supervised=2)
    trained = sized(body=Weights(trained=1000), head=Weights(trained=100))
    frozen = sized(body=Weights(trained=10, frozen=1000), head=Weights(trained=0, frozen=100))
    attention = 12.0 * 2 * 8 * 10
    assert step_flops(trained, [tree]) == 6 * 1000 * 4 + 6 * 100 * 2 + attention
    assert step_flops(frozen, [tree]) == (4 * 1000 + 6 * 10) * 4 + 4 * 100 * 2 + attention


def test_a_tree_costs_less_than_its_examples_apart_and_each_example_as_much():
    size = sized(body=Weights(trained=1000), head=Weights(trained=100))
    trunk = [1] * 30
    branches = (Branch(10, [1] * 3, [1] * 4, 0), Branch(30, [1] * 3, [1] * 5, 2))
    apart = [Tree(trunk[: branch.cut], (branch,)) for branch in branches]
    shared = 10 * 6.0 * 1000 + 12.0 * 2 * 8 * (10 * 11 // 2)
    whole = step_flops(size, [Tree(trunk, branches)])
    assert whole == step_flops(size, apart) - shared
    # By hand: 45 tokens, 9 supervised; the trunk sees 465 keys, the branches 7 * 10 + 28 and 8 * 30 + 36.
    assert whole == 6.0 * (1000 * 45 + 100 * 9) + 12.0 * 2 * 8 * (465 + 98 + 276)


def test_a_mixture_of_experts_has_no_flops():
    config = AutoConfig.for_model("mixtral", hidden_size=32, num_hidden_layers=1, num_local_experts=4)
    assert step_flops(model_size(config, TrainConfig()), [plain(4, supervised=2)]) is None


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
