"""Every architecture is trained exactly under each kind of attention, or refused by name before the first step."""

import json
from random import Random

import pytest
import torch
from tiny_models import VOCAB, tiny_config, tiny_model
from transformers import LlamaForCausalLM

from steper_ray.config import TrainConfig
from steper_ray.core.errors import ModelError, TrainingError
from steper_ray.core.probes import PROBES, read_probes, write_probes
from steper_ray.training.data import Item
from steper_ray.training.exactness import check_exactness, examples_of, probe, short_trees
from steper_ray.training.forward import Forward
from steper_ray.training.packing import IGNORE, Branch, Tree, pack_rows
from steper_ray.training.sizes import model_size

#: Whose packed trees are exact under both `blocks` and `dense`.
EXACT = [
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt_neox", "gpt2", "opt",
    "olmo", "olmo2", "granite", "cohere", "starcoder2", "smollm3", "gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe",
    "deepseek_v3",
]  # fmt: skip
#: Whose own attention takes no blocks, but the additive mask of `dense`.
DENSE = ["stablelm", "nemotron", "falcon", "xglm", "gptj", "codegen"]
#: Whose positions or states are the row's, not the tree's: only `eager` on rows of one example is exact.
ALONE = ["bloom", "mpt", "gpt_neo", "mamba", "mamba2", "jamba", "qwen3_next"]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that spin cost more than these models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trees(seed=0):
    """Three step trees of two examples each."""
    rng = Random(seed)

    def tokens(size):
        return tuple(rng.randrange(3, VOCAB) for _ in range(size))

    return [Tree(tokens(14), tuple(Branch(c, tokens(3), tokens(5), 0) for c in (6, 14))) for _ in range(3)]


def forward(model, attention="blocks"):
    return Forward(model, model, attention, torch.float32, torch.device("cpu"))


def check(model, **settings):
    config = TrainConfig(**settings)
    packed = trees() if config.packing == "tree" else examples_of(trees())
    check_exactness(forward(model, config.attention), packed, config, "some/model")


def textbook_losses(model):
    """Each example alone, by transformers' own loss."""
    model.set_attn_implementation("eager")
    losses = []
    for example in examples_of(trees()):
        (branch,) = example.branches
        ids = torch.tensor([[*example.trunk, *branch.prompt, *branch.target]])
        labels = ids.clone()
        labels[0, : len(example.trunk) + len(branch.prompt)] = IGNORE
        losses.append(torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], labels[0, 1:]))
    return torch.stack(losses)


def assert_exact(model, attention):
    """The check says so, and the losses of the packed trees are the textbook's, to 1e-5."""
    check(model, attention=attention)
    with torch.no_grad():
        packed = forward(model.eval(), attention).losses(pack_rows(trees(), [[0, 1], [2]], pad_id=0))
        torch.testing.assert_close(packed, textbook_losses(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", EXACT)
def test_packed_trees_are_exact_for_an_architecture(family):
    model = tiny_model(family)
    for attention in ("blocks", "dense"):
        assert_exact(model, attention)


@pytest.mark.parametrize("family", DENSE)
def test_an_architecture_that_takes_no_blocks_is_refused_there_and_exact_with_a_dense_mask(family):
    model = tiny_model(family)
    with pytest.raises(TrainingError, match=r"attention=blocks: .*\. Set train\.attention=dense; or set"):
        check(model)
    assert_exact(model, "dense")


@pytest.mark.parametrize("family", ALONE)
def test_an_architecture_that_no_mask_of_ours_fits_is_refused_and_exact_when_left_alone(family):
    model = tiny_model(family)
    said = rf"{type(model).__name__}.* cannot be trained exactly .*train\.packing=padded and train\.attention=eager"
    for attention in ("blocks", "dense"):
        with pytest.raises(TrainingError, match=said):
            check(model, attention=attention)
    check(model, packing="padded", attention="eager")


def test_soft_caps_and_sinks_are_expressed_by_value():
    """With them left out, the losses are others: what the matrix shows as exact is not a model without effect."""
    for family, settings in (("gemma2", {"attn_logit_softcapping": None}), ("gpt_oss", {})):
        model = tiny_model(family)
        with torch.no_grad():
            capped = forward(model.eval()).losses(pack_rows(trees(), [[0, 1], [2]], pad_id=0))
            other = tiny_model(family, **settings).eval()
            other.load_state_dict(model.state_dict())
            if family == "gpt_oss":
                for layer in other.model.layers:
                    layer.self_attn.sinks.fill_(-100.0)
            free = forward(other).losses(pack_rows(trees(), [[0, 1], [2]], pad_id=0))
        assert (capped - free).abs().max() > 1e-3


def test_gradients_go_through_soft_caps_and_sinks():
    for family in ("gemma2", "gpt_oss"):
        model = tiny_model(family).eval()
        found = []
        packed = forward(model).losses(pack_rows(trees(), [[0, 1], [2]], pad_id=0))
        for losses in (packed, textbook_losses(model)):
            model.zero_grad()
            losses.sum().backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_flex_attention_is_refused_by_name_where_a_model_has_none():
    with pytest.raises(TrainingError, match=r"train\.attention=flex: this model does not have it \(GPT2"):
        forward(tiny_model("gpt2"), "flex")


def test_flex_attention_expresses_a_soft_cap():
    """Its forward pass, not compiled: on a CPU it has no backward pass."""
    model, config = tiny_model("gemma2"), TrainConfig().model_copy(update={"attention": "flex"})
    model.train = lambda mode=True: model  # its kernel takes no dropout
    with torch.compiler.set_stance("force_eager"):
        check_exactness(forward(model.eval(), "flex"), trees(), config, "some/model")


class Bidirectional(LlamaForCausalLM):
    """Sees what comes after a token: padding, and the answer."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        length = input_ids.shape[1]
        return super().forward(input_ids, attention_mask=torch.zeros(1, 1, length, length), **kwargs)


def test_a_model_that_sees_the_padding_behind_an_example_is_refused_everywhere():
    torch.manual_seed(0)
    model = Bidirectional(tiny_config("llama"))
    uneven = [*examples_of(trees()), Tree((3,) * 20, (Branch(20, (4,), (5, 6), 0),))]
    config = TrainConfig(packing="padded", attention="eager")
    with pytest.raises(TrainingError, match=r"differ by .* Take another model"):
        check_exactness(forward(model, "eager"), uneven, config, "some/model")


class Broken(LlamaForCausalLM):
    """Gives no numbers."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * torch.nan
        return output


def test_log_probabilities_that_are_no_numbers_do_not_pass():
    with pytest.raises(TrainingError, match="differ by nan"):
        check(Broken(tiny_config("llama")))


def test_a_check_leaves_the_student_as_it_was():
    model = tiny_model("llama").train()
    student = forward(model)
    check_exactness(student, trees(), TrainConfig(), "some/model")
    assert model.training
    assert model.config._attn_implementation == "step_tree_blocks"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert student.losses(pack_rows(trees(), [[0, 1, 2]], pad_id=0)).requires_grad


def test_the_trees_of_a_check_are_short_and_cut_like_those_of_the_data():
    long = Tree(range(1000), tuple(Branch(cut, range(50), range(90), 0) for cut in (250, 500, 1000)))
    first, second = short_trees([Item("a", (long,)), Item("b", (long,))])
    assert first == second
    assert [branch.cut for branch in first.branches] == [8, 32]
    assert len(first) < 64
    assert list(first.branches[0].prompt) == list(range(44, 50))


def test_probes_are_the_students_own_next_tokens_and_come_back_from_their_file(tmp_path):
    model = tiny_model("llama")
    found = probe(forward(model), trees()[:1], TrainConfig())
    write_probes(tmp_path, found)
    assert read_probes(tmp_path) == found
    assert found.dtype == "float32"
    model.eval().set_attn_implementation("eager")
    for one in found.probes:
        logprobs = model(input_ids=torch.tensor([one.prompt])).logits[0, -1].detach().log_softmax(dim=-1)
        assert one.token == int(logprobs.argmax())
        assert one.logprob == pytest.approx(float(logprobs[one.token]), abs=1e-5)


def test_probes_that_cannot_be_read_are_named(tmp_path):
    assert read_probes(tmp_path) is None
    for text in ("{", json.dumps({"dtype": "float32", "probes": [{"prompt": 3}]})):
        (tmp_path / PROBES).write_text(text)
        with pytest.raises(ModelError, match=rf"{PROBES}: cannot be read as a model's probes"):
            read_probes(tmp_path)


def test_eager_attention_needs_rows_of_one_example():
    with pytest.raises(ValueError, match="set packing=padded"):
        TrainConfig(attention="eager")


@pytest.mark.parametrize("family", ["mamba", "bloom", "gpt_oss"])
def test_every_architecture_has_a_size(family):
    eager = TrainConfig(attention="eager", packing="padded")
    assert model_size(tiny_config(family), eager).parameters > 0
    assert model_size(tiny_config(family), TrainConfig()).scores == (4 if family == "gpt_oss" else 0)
