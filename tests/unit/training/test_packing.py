"""Step-tree packing is exact: logits, losses and gradients equal those of the separate examples."""

from random import Random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steper_ray.core.errors import TrainingError
from steper_ray.training.attention import IMPLEMENTATIONS, attention_inputs, attention_mask, flex_mask
from steper_ray.training.packing import (
    IGNORE,
    Branch,
    Tree,
    example_losses,
    fill_rows,
    pack,
    pack_rows,
    supervised_columns,
)

VOCAB = 50

both = pytest.mark.parametrize("attention", ["blocks", "dense"])


def tiny_model(seed=0, kv_heads=2, family="llama"):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def random_tree(rng):
    def tokens(low, high):
        return tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(low, high)))

    trunk = tokens(4, 20)
    cuts = sorted(rng.randint(1, len(trunk)) for _ in range(rng.randint(1, 4)))
    return Tree(trunk, tuple(Branch(cut, tokens(1, 5), tokens(1, 8), rng.randrange(3)) for cut in cuts))


def separate_losses(model, trees):
    """Each example alone in a sequence of its own, by the textbook."""
    losses = []
    for tree in trees:
        for branch in tree.branches:
            ids = torch.tensor([[*tree.trunk[: branch.cut], *branch.prompt, *branch.target]])
            labels = ids.clone()
            labels[0, : branch.cut + len(branch.prompt)] = IGNORE
            losses.append(model(input_ids=ids, labels=labels).loss)
    return torch.stack(losses)


def forward(model, packed, attention, **kwargs):
    model.set_attn_implementation(IMPLEMENTATIONS[attention])
    return model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        **attention_inputs(packed, attention),
        **kwargs,
    ).logits


def packed_losses(model, packed, attention, columns=None):
    kwargs = {} if columns is None else {"logits_to_keep": columns}
    return example_losses(forward(model, packed, attention, **kwargs), packed, columns)


def gradients(model, losses):
    weights = torch.linspace(0.5, 1.5, len(losses))
    model.zero_grad()
    (losses * weights).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def assert_exact(model, trees, length, attention):
    """The packed trees' losses and gradients are those of the separate examples."""
    packed = pack(trees, length=length, pad_id=0)
    assert packed.input_ids.shape[0] > 1
    model.set_attn_implementation("sdpa")
    alone = separate_losses(model, trees)
    theirs = gradients(model, alone)
    together = packed_losses(model, packed, attention)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    for ours, other in zip(gradients(model, together), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize("seed", range(4))
def test_losses_and_gradients_of_trees_equal_those_of_separate_examples(seed, attention):
    rng = Random(seed)
    assert_exact(tiny_model(seed), [random_tree(rng) for _ in range(5)], 90, attention)


@both
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_they_do_for_every_family_with_grouped_key_heads_and_recomputed_layers(family, attention):
    rng, model = Random(11), tiny_model(kv_heads=1, family=family)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_exact(model, [random_tree(rng) for _ in range(5)], 90, attention)


@both
def test_they_do_where_every_tree_is_one_plain_sequence(attention):
    rng = Random(5)
    trunks = [tuple(rng.randrange(3, VOCAB) for _ in range(size)) for size in (3, 9, 14)]
    trees = [Tree(trunk, (Branch(len(trunk), (4,), (5, 6), 2),)) for trunk in trunks]
    assert_exact(tiny_model(), trees, 20, attention)


@both
def test_logits_of_a_branch_equal_those_of_the_separate_example(attention):
    tree = random_tree(Random(7))
    model = tiny_model()
    with torch.no_grad():
        logits = forward(model, pack([tree], length=200, pad_id=0), attention)
        model.set_attn_implementation("sdpa")
        at = len(tree.trunk)
        for branch in tree.branches:
            size = len(branch.prompt) + len(branch.target)
            ids = torch.tensor([[*tree.trunk[: branch.cut], *branch.prompt, *branch.target]])
            alone = model(input_ids=ids).logits[0, branch.cut :]
            torch.testing.assert_close(logits[0, at : at + size], alone, rtol=1e-4, atol=1e-5)
            at += size


def test_flex_attention_gives_the_losses_of_the_dense_mask():
    """Its forward pass, not compiled: on a CPU it has no backward pass."""
    rng = Random(4)
    packed = pack([random_tree(rng) for _ in range(6)], 90, pad_id=0)
    assert len(packed.input_ids) > 1
    model = tiny_model().eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        flex = packed_losses(model, packed, "flex")
        torch.testing.assert_close(flex, packed_losses(model, packed, "dense"), rtol=1e-5, atol=1e-6)


def test_flex_attention_skips_the_tiles_between_trees():
    tree = Tree(range(100), (Branch(100, (1,), (2,) * 27, 0),))
    mask = flex_mask(pack([tree] * 4, length=512, pad_id=0))
    assert mask.to_dense()[0, 0].tolist() == torch.eye(4, dtype=torch.int).tolist()


@both
def test_computing_the_supervised_columns_alone_gives_the_same_losses(attention):
    rng = Random(3)
    packed = pack([random_tree(rng) for _ in range(4)], length=80, pad_id=0)
    model, columns = tiny_model(), supervised_columns(packed)
    assert len(columns) < packed.input_ids.shape[1]
    torch.testing.assert_close(
        packed_losses(model, packed, attention, columns), packed_losses(model, packed, attention)
    )


def test_a_model_that_passes_no_blocks_on_is_named_with_the_fix():
    model = tiny_model()
    model.set_attn_implementation(IMPLEMENTATIONS["blocks"])
    with pytest.raises(
        TrainingError, match=r"LlamaAttention was given no attention_blocks.*train\.attention=dense"
    ):
        model(input_ids=torch.tensor([[3, 4]]))


def test_a_branch_sees_its_cut_and_itself_and_nothing_else():
    tree = Tree((3, 4, 5), (Branch(2, (6,), (7,), 0), Branch(3, (8,), (9,), 2)))
    mask = attention_mask(pack([tree, tree], length=14, pad_id=0))[0, 0]
    assert mask[4].nonzero()[:, 0].tolist() == [0, 1, 3, 4]
    assert mask[6].nonzero()[:, 0].tolist() == [0, 1, 2, 5, 6]
    assert mask[9].nonzero()[:, 0].tolist() == [7, 8, 9]


def test_padding_sees_itself_alone_and_is_never_learned():
    long, short = Tree((3,) * 6, (Branch(6, (4,), (5,), 0),)), Tree((3,), (Branch(1, (4,), (5,), 0),))
    packed = pack_rows([long, short], [[0], [1]], pad_id=0)
    assert attention_mask(packed)[1, 0, 7].nonzero()[:, 0].tolist() == [7]
    assert (packed.labels[1, 3:] == IGNORE).all()


def test_rows_hold_every_tree_once_and_none_is_too_long():
    rng = Random(1)
    sizes = [rng.randint(1, 60) for _ in range(40)]
    rows = fill_rows(sizes, 64)
    assert sorted(i for row in rows for i in row) == list(range(40))
    assert max(sum(sizes[i] for i in row) for row in rows) <= 64


def test_an_item_longer_than_a_row_is_named_with_the_fix():
    with pytest.raises(ValueError, match="item 1 has 11 tokens, a row holds 10: raise"):
        fill_rows([4, 11], 10)
