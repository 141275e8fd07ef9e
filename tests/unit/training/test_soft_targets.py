"""Soft targets: the divergence by its definition, its gradient, and a teacher that reads other tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from steper_ray.config import SoftTargetsConfig, TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.models import resolve_model
from steper_ray.pretrained import load_model
from steper_ray.training.alignment import NONE
from steper_ray.training.engine import Worker
from steper_ray.training.exactness import examples_of
from steper_ray.training.forward import Forward
from steper_ray.training.packing import Branch, Said, Tree, pack
from steper_ray.training.soft_targets import (
    Teacher,
    bucket_divergences,
    divergences,
    shared_vocabulary,
    step_weights,
    stored_losses,
)


def logits(tokens=700, vocabulary=11):
    torch.manual_seed(0)
    return torch.randn(tokens, vocabulary, requires_grad=True), torch.randn(tokens, vocabulary)


def by_definition(student, teacher, beta):
    ours, theirs = student.softmax(-1), teacher.softmax(-1)
    mixed = (1 - beta) * ours + beta * theirs
    if beta in (0, 1):
        of, to = (theirs, ours) if beta == 0 else (ours, theirs)
        return (of * (of.log() - to.log())).sum(-1)
    terms = [share * of * (of.log() - mixed.log()) for share, of in ((beta, theirs), (1 - beta, ours))]
    return sum(terms).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_the_divergence_and_its_gradient_are_those_of_its_definition(beta):
    student, teacher = logits()
    found, wanted = divergences(student, teacher, beta, 1.0), by_definition(student, teacher, beta)
    assert torch.allclose(found, wanted, atol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), student, retain_graph=True)[0] for value in (found, wanted)]
    assert torch.allclose(*gradients, atol=1e-5)
    assert not teacher.requires_grad


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn():
    student, _ = logits()
    for beta in (0.0, 0.3, 1.0):
        found = divergences(student, student.detach(), beta, 2.0)
        assert found.abs().max() < 1e-5
        assert torch.autograd.grad(found.sum(), student)[0].abs().max() < 1e-6


def test_a_temperature_softens_both_and_keeps_the_gradients_size():
    student, teacher = logits(tokens=3)
    soft = kl_div((student / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="none").sum(-1) * 16
    assert torch.allclose(divergences(student, teacher, 0.0, 4.0), soft, atol=1e-5)
    assert divergences(student[:0], teacher[:0], 0.0, 1.0).shape == (0,)


def test_a_step_further_from_the_teacher_than_one_before_it_weighs_less_and_one_that_comes_back_does_not():
    divergence = torch.tensor([0.2, 0.8, 0.1, 0.4, 0.5, 0.0, 0.3], requires_grad=True)
    weights = step_weights(divergence, torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.25, 1.0, 0.25, 1.0, 1.0, 0.0]))
    assert not weights.requires_grad


def test_the_losses_of_a_chains_steps_are_weighed_and_those_of_other_chains_are_not():
    """Two trees of two and one steps, the teacher another model than the student."""
    trees = [
        Tree((1, 2, 3), (Branch(2, (4,), (5, 6), 0), Branch(3, (4,), (5, 7, 8), 2))),
        Tree((9,), (Branch(1, (4,), (8,), 2),)),
    ]
    packed = pack(trees, 32, 0)
    assert packed.chain.tolist() == [0, 0, 1]
    found = {}
    for how in ("equal", "divergence"):
        config = TrainConfig(
            method="on_policy",
            soft_targets={"teacher": "miniature:teacher", "share": 1.0},
            on_policy={"step_weights": how},
            zero_stage=0,
        )
        worker = Worker(0, 1, torch.device("cpu"))
        student = resolve_model("miniature:base")
        teacher = Teacher("miniature:teacher", config.soft_targets, student, config, worker)
        model = load_model(student, False, dtype=torch.float32, attn_implementation="eager")
        forward = Forward(model, model, config.attention, torch.float32, worker.device)
        found[how] = teacher.losses_of(forward, packed)
    expected = found["equal"] * step_weights(found["equal"].detach(), packed.chain)
    torch.testing.assert_close(found["divergence"], expected)
    assert found["divergence"].requires_grad


def test_a_teacher_with_another_tokenizer_is_refused_with_both_names(tmp_path):
    ours = Path(resolve_model("miniature:base"))
    assert shared_vocabulary(str(ours), resolve_model("miniature:teacher"), False) == 1024
    for file in ("config.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((ours / file).read_bytes())
    other = json.loads((ours / "tokenizer.json").read_text())
    words = other["model"]["vocab"]
    words["Ġregion"], words["Ġdirector"] = words["Ġdirector"], words["Ġregion"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(TrainingError, match=r"another tokenizer than the student .*base"):
        shared_vocabulary(str(ours), str(tmp_path), False)


def buckets_by_definition(student, ids, logprobs, beta):
    """One token at a time, with probabilities."""
    found = []
    for row, tokens, said in zip(student.softmax(-1), ids.tolist(), logprobs.exp().tolist(), strict=True):
        known = [(token, p) for token, p in zip(tokens, said, strict=True) if token != NONE]
        ours = torch.stack([*(row[token] for token, _ in known), 1 - sum(row[token] for token, _ in known)])
        theirs = torch.tensor([*(p for _, p in known), 1 - sum(p for _, p in known)])
        found.append(by_definition(ours.log()[None], theirs.log()[None], beta)[0])
    return torch.stack(found)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_likeliest_tokens_and_the_rest_as_one_are_compared_as_the_definition_says(beta):
    student, teacher = logits(tokens=300)
    logprobs, ids = teacher.log_softmax(-1).topk(4)
    ids[5:50, 3] = NONE  # a token that the student does not know is of the rest
    found, wanted = (of(student, ids, logprobs, beta) for of in (bucket_divergences, buckets_by_definition))
    assert torch.allclose(found, wanted, atol=1e-4)
    gradients = [torch.autograd.grad(value.sum(), student, retain_graph=True)[0] for value in (found, wanted)]
    assert torch.allclose(*gradients, atol=1e-4)
    assert (found <= by_definition(student, teacher, beta) + 1e-5).all()  # merging tells no more apart


def test_rounded_probabilities_of_more_than_one_and_a_whole_vocabulary_have_a_finite_divergence():
    student, teacher = logits(tokens=9)
    logprobs, ids = teacher.log_softmax(-1).topk(11)
    whole = bucket_divergences(student, ids, logprobs, 0.0)
    assert torch.allclose(whole, by_definition(student, teacher, 0.0), atol=1e-3)
    for value in (0.01, -torch.inf):
        found = bucket_divergences(student, ids[:, :1], torch.full((9, 1), value), 0.5)
        assert torch.isfinite(found).all()
        assert torch.isfinite(torch.autograd.grad(found.sum(), student, retain_graph=True)[0]).all()


@pytest.mark.parametrize("packing", ["tree", "rows"])
def test_each_token_has_what_the_builds_teacher_said_of_it_however_examples_are_packed(packing):
    said = Said(
        1, np.array([[6, 9], [8, NONE]], np.int32), np.log([[0.5, 0.25], [0.75, 1.0]]).astype(np.float16)
    )
    branches = Branch(2, (4,), (5, 6), 0), Branch(3, (4,), (5, 6, 8), 2, said=said)
    trees = [Tree((1, 2, 3), branches), Tree((9, 7), (Branch(1, (4,), (8,), 2),))]
    if packing == "rows":
        trees = examples_of(trees)
    model = load_model(
        resolve_model("miniature:base"), False, dtype=torch.float32, attn_implementation="eager"
    )
    forward = Forward(model, model, "blocks", torch.float32, torch.device("cpu"))
    targets = SoftTargetsConfig(teacher="build", share=0.25, beta=0.3)
    found = stored_losses(targets, forward, pack(trees, 16, 0))
    model.set_attn_implementation("eager")
    wanted = []
    for tree in examples_of(trees):
        (branch,) = tree.branches
        ids = torch.tensor([[*tree.trunk, *branch.prompt, *branch.target]])
        at = model(input_ids=ids).logits[0, -len(branch.target) - 1 : -1]
        tokens = cross_entropy(at, torch.tensor(branch.target), reduction="none")
        if branch.said is not None:
            apart = buckets_by_definition(
                at[1:], torch.tensor(said.ids), torch.tensor(said.logprobs, dtype=torch.float32), 0.3
            )
            tokens = torch.cat([tokens[:1], 0.75 * tokens[1:] + 0.25 * apart])
        wanted.append(tokens.mean())
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=1e-4)
    assert found.requires_grad
