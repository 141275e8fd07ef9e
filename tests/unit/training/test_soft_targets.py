"""Soft targets: the divergence by its definition, its gradient, and a teacher that reads other tokens."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import kl_div

from steper_ray.core.errors import TrainingError
from steper_ray.models import resolve_model
from steper_ray.training.soft_targets import divergences, shared_vocabulary


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
