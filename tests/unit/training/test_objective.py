"""The objective and the difficulty weights: closed forms, independence of the cut, missing tasks, bounds."""

import math
import re

import pytest
import torch

from steper_ray.config import TrainConfig
from steper_ray.training.difficulty import DifficultyWeights, too_few_steps
from steper_ray.training.objective import (
    effective_weights,
    task_divisors,
    task_sums,
    task_weights,
    total_loss,
    weighted_sum,
)

LOSSES = torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0, 13.0])
TASK = torch.tensor([0, 1, 1, 1, 2, 2])
COUNTS = (1, 3, 2)
MEANS = torch.tensor([1.0, 10 / 3, 10.5])
ONE = torch.ones(6)
ALL = (True, True, True)
ZERO = torch.zeros(3)


def share(config, log_sigma=ZERO, part=slice(None), counts=COUNTS, questions=2, losses=LOSSES):
    weights, divisors = task_weights(config, log_sigma), task_divisors(config, counts, questions)
    return weighted_sum(losses[part], TASK[part], ONE[part], weights, divisors)


def test_uniform_is_the_mean_of_the_three_task_means():
    assert share(TrainConfig(weighting="uniform")).item() == pytest.approx(MEANS.mean().item())


@pytest.mark.parametrize("weights", [(1.5, 1.0, 0.5), (0.5, 1.0, 1.5)], ids=["first", "last"])
def test_the_fixed_weights_of_table_2_multiply_the_task_means(weights):
    config = TrainConfig(weighting="fixed", fixed_weights=weights)
    first, middle, last = weights
    wanted = (first * 1 + middle * 10 / 3 + last * 10.5) / 3
    assert share(config).item() == pytest.approx(wanted)
    assert total_loss(config, MEANS, ALL, ZERO) == pytest.approx(wanted)


def test_difficulty_aware_is_the_papers_sum():
    config, log_sigma = TrainConfig(weighting="difficulty"), torch.tensor([0.1, -0.3, 0.5])
    weighted = (MEANS / (2 * torch.exp(log_sigma) ** 2)).sum().item()
    assert share(config, log_sigma).item() == pytest.approx(weighted)
    assert total_loss(config, MEANS, ALL, log_sigma) == pytest.approx(weighted + log_sigma.sum().item())


def test_vanilla_kd_learns_aggregation_alone_whatever_the_weighting():
    for weighting in ("difficulty", "uniform", "fixed"):
        config = TrainConfig(method="vanilla_kd", weighting=weighting)
        assert share(config, torch.tensor([1.0, 1.0, 1.0])).item() == pytest.approx(10.5)
        assert total_loss(config, MEANS, ALL, torch.ones(3)) == pytest.approx(10.5)


def test_per_question_divides_every_task_by_the_number_of_questions():
    config = TrainConfig(weighting="uniform", normalize="per_question")
    assert share(config, questions=2).item() == pytest.approx(LOSSES.sum().item() / (3 * 2))


@pytest.mark.parametrize("weighting", ["difficulty", "uniform"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_neither_value_nor_gradient_depends_on_how_the_batch_is_cut(weighting, size):
    config, log_sigma = TrainConfig(weighting=weighting), torch.tensor([0.2, 0.0, -0.4])
    whole, pieces = LOSSES.clone().requires_grad_(), LOSSES.clone().requires_grad_()
    total = share(config, log_sigma, losses=whole)
    total.backward()
    cut = sum(share(config, log_sigma, slice(at, at + size), losses=pieces) for at in range(0, 6, size))
    cut.backward()
    assert cut.item() == pytest.approx(total.item())
    torch.testing.assert_close(pieces.grad, whole.grad)


def test_an_example_of_weight_zero_contributes_neither_loss_nor_gradient():
    losses = LOSSES.clone().requires_grad_()
    weight = torch.tensor([0.0, 1, 1, 1, 1, 1])
    config = TrainConfig(weighting="uniform")
    weighted_sum(
        losses, TASK, weight, task_weights(config, ZERO), task_divisors(config, COUNTS, 2)
    ).backward()
    assert losses.grad[0] == 0
    assert task_sums(losses, TASK, weight).tolist() == [0, 10, 21]


def test_a_missing_task_counts_neither_its_loss_nor_its_log_sigma():
    config, log_sigma = TrainConfig(weighting="difficulty"), torch.tensor([0.7, 0.0, 0.7])
    present = (False, True, False)
    losses = torch.tensor([0.0, 4.0, 0.0])
    assert total_loss(config, losses, present, log_sigma) == pytest.approx(2.0)
    assert torch.isfinite(share(config, log_sigma, counts=(0, 3, 2), part=slice(1, 6)))


def test_a_missing_task_keeps_its_sigma_and_its_optimiser_state():
    seen, skipped = DifficultyWeights(3, 0.05, (-2, 2)), DifficultyWeights(3, 0.05, (-2, 2))
    for _ in range(5):
        seen.update(torch.tensor([3.0, 1.0, 2.0]), ALL)
        skipped.update(torch.tensor([3.0, 1.0, 2.0]), ALL)
        skipped.update(torch.tensor([9.0, 9.0, 9.0]), (False, False, False))
    assert torch.equal(seen.log_sigma, skipped.log_sigma)


def test_effective_weights_are_one_over_two_sigma_squared():
    log_sigma = torch.log(torch.tensor([1.0, 2.0, 0.5]))
    torch.testing.assert_close(effective_weights(log_sigma), torch.tensor([0.5, 0.125, 2.0]))


def test_sigma_comes_to_the_square_root_of_a_fixed_loss():
    weights, losses = DifficultyWeights(3, 0.02, (-1.5, 1.5)), torch.tensor([0.25, 1.0, 4.0])
    for _ in range(400):
        weights.update(losses, ALL)
    torch.testing.assert_close(weights.log_sigma.exp(), losses.sqrt(), rtol=1e-2, atol=0)


def test_a_run_whose_steps_bring_sigma_nowhere_near_its_optimum_is_told_of_a_rate_that_does():
    said = too_few_steps(20, 0.02)
    rate = float(re.search(r"sigma_lr=([\d.]+)", said).group(1))
    slow, fast = (DifficultyWeights(1, lr, (-3, 3)) for lr in (0.02, rate))
    for _ in range(20):
        for weights in (slow, fast):
            weights.update(torch.tensor([0.1]), (True,))
    assert f"to about {slow.log_sigma.exp().item():.2f} at most" in said
    assert slow.log_sigma.exp().item() > 0.6
    assert fast.log_sigma.exp().item() == pytest.approx(0.1**0.5, rel=0.2)
    assert too_few_steps(20, rate) is None


def test_sigma_moves_along_the_gradient_that_autograd_gives():
    log_sigma = torch.nn.Parameter(torch.zeros(3))
    adam, weights = torch.optim.Adam([log_sigma], lr=0.02), DifficultyWeights(3, 0.02, (-1.5, 1.5))
    for step in range(20):
        losses = torch.tensor([0.3, 1.0 + step, 2.0])
        adam.zero_grad()
        (losses / (2 * torch.exp(log_sigma) ** 2) + log_sigma).sum().backward()
        adam.step()
        weights.update(losses, ALL)
    torch.testing.assert_close(weights.log_sigma, log_sigma.detach())


def test_sigma_stays_inside_its_bounds():
    weights = DifficultyWeights(3, 0.5, (-0.5, 0.25))
    for _ in range(50):
        weights.update(torch.tensor([1e-6, 1.0, 1e6]), ALL)
    assert weights.log_sigma[0].item() == -0.5
    assert weights.log_sigma[2].item() == 0.25


def test_restored_difficulty_weights_go_on_as_the_saved_ones():
    first, second = DifficultyWeights(3, 0.05, (-2, 2)), DifficultyWeights(3, 0.05, (-2, 2))
    losses = torch.tensor([0.2, 1.4, 3.0])
    for _ in range(3):
        first.update(losses, ALL)
    second.load_state_dict(first.state_dict())
    for weights in (first, second):
        weights.update(losses, ALL)
    assert torch.equal(first.log_sigma, second.log_sigma)
    assert not math.isclose(first.log_sigma[0].item(), 0.0)
