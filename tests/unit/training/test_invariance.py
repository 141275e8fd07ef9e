"""The gradient of a step is that of the global batch, however it is cut into rows, micro-batches and workers."""

from random import Random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.training import loop
from steper_ray.training.attention import IMPLEMENTATIONS, attention_inputs
from steper_ray.training.data import Batch, Item
from steper_ray.training.difficulty import DifficultyWeights
from steper_ray.training.engine import Worker
from steper_ray.training.loop import Trainer
from steper_ray.training.objective import N_TASKS, task_divisors, task_weights, total_loss
from steper_ray.training.packing import Branch, Tree, example_losses, supervised_columns
from steper_ray.training.shares import filler, split

VOCAB, ROW, N_ITEMS = 40, 64, 8
LOG_SIGMA = torch.tensor([0.3, -0.2, 0.1])
#: (workers, rows of one forward pass) and what that comes to for eight trajectories of a row each.
CUTS = {
    "1x8": (1, 1),
    "2x4": (2, 1),
    "4x2": (4, 1),
    "8 packed": (1, 8),
    "8 workers": (8, 1),
    "3 uneven": (3, 2),
}


class Model:
    """What the loop needs of an engine, around a model in plain PyTorch."""

    def __init__(self):
        torch.manual_seed(0)
        shape = AutoConfig.for_model(
            "llama",
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.2,
        )
        self.model = AutoModelForCausalLM.from_config(
            shape, dtype=torch.float64, attn_implementation=IMPLEMENTATIONS["dense"]
        )
        self.passes = 0

    def losses(self, packed):
        self.passes += 1
        columns = supervised_columns(packed)
        inputs = attention_inputs(packed, "dense")
        output = self.model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, logits_to_keep=columns, **inputs
        )
        return example_losses(output.logits, packed, columns)

    def backward(self, loss, *, last):
        loss.backward()

    def gradients(self):
        return [p.grad.clone() for p in self.model.parameters()]


def batch_of(tasks, seed=0):
    """Eight trajectories of two to four examples of these tasks, each longer than half a row."""
    rng = Random(seed)

    def tokens(low, high):
        return tuple(rng.randrange(2, VOCAB) for _ in range(rng.randint(low, high)))

    items = []
    for number in range(N_ITEMS):
        trunk = tokens(30, 32)
        branches = tuple(
            Branch(rng.randint(4, len(trunk)), tokens(2, 3), tokens(2, 5), rng.choice(tasks))
            for _ in range(rng.randint(2, 4))
        )
        items.append(Item(f"q{number}", (Tree(trunk, branches),)))
    counts = [sum(column) for column in zip(*(item.counts() for item in items), strict=True)]
    assert {task for task, count in enumerate(counts) if count} == set(tasks)
    return Batch(0, tuple(items), tuple(counts))


def run(batch, cut, **settings):
    """Gradients, task losses and value of one step as its workers run it, and the forward passes of each."""
    workers, rows = CUTS[cut]
    config = TrainConfig(row_tokens=ROW, rows_per_micro_batch=rows, **settings)
    weights, divisors = task_weights(config, LOG_SIGMA), task_divisors(config, batch.counts, N_ITEMS)
    engine = Model()
    sums = torch.zeros(N_TASKS, dtype=torch.float64)
    for share in split(batch, workers, config):
        worker = SimpleNamespace(_engine=engine, _losses=engine.losses, _filler=filler(1))
        sums += Trainer._accumulate(worker, share, weights, divisors)
    present = [count > 0 for count in batch.counts]
    value = total_loss(config, sums / divisors, present, LOG_SIGMA)
    return engine.gradients(), sums / divisors, value, engine.passes


@pytest.mark.parametrize("normalize", ["per_task", "per_question"])
@pytest.mark.parametrize("weighting", ["difficulty", "uniform"])
@pytest.mark.parametrize("tasks", [(0, 1, 2), (0, 2), (2,)], ids=["all", "no expansion", "aggregation"])
def test_one_step_is_the_same_however_its_batch_is_cut(tasks, weighting, normalize):
    batch = batch_of(tasks)
    settings = {"weighting": weighting, "normalize": normalize}
    wanted, losses, value, passes = run(batch, "1x8", **settings)
    assert passes == N_ITEMS
    assert any(gradient.abs().max() > 1e-3 for gradient in wanted)
    for cut in CUTS:
        ours, our_losses, our_value, _ = run(batch, cut, **settings)
        torch.testing.assert_close(our_losses, losses, rtol=1e-6, atol=0)
        assert our_value == pytest.approx(value, rel=1e-6)
        for gradient, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-7)


def test_the_cuts_are_what_their_names_say():
    batch = batch_of((0, 1, 2))
    passes = {cut: run(batch, cut)[3] for cut in CUTS}
    assert passes == {"1x8": 8, "2x4": 8, "4x2": 8, "8 packed": 1, "8 workers": 8, "3 uneven": 6}


@pytest.mark.parametrize("cut", ["1x8", "4x2", "8 packed"])
def test_a_task_that_is_missing_leaves_the_gradient_of_the_others_alone(cut):
    """The mean of a task is over its own examples: without expansion, uniform is the other two by a third each."""
    batch = batch_of((0, 2))
    (ours, losses, value, _), third = run(batch, cut, weighting="uniform"), 1 / 3
    fixed, _, _, _ = run(batch, cut, weighting="fixed", fixed_weights=(1.0, 123.0, 1.0))
    assert value == pytest.approx(third * (losses[0] + losses[2]).item())
    for gradient, other in zip(ours, fixed, strict=True):
        torch.testing.assert_close(gradient, other)


def test_a_sigma_that_is_no_number_stops_the_training_before_anything_is_saved(monkeypatch):
    batch = batch_of((0, 1, 2))
    config = TrainConfig(row_tokens=ROW)
    trainer = Trainer.__new__(Trainer)
    trainer._config, trainer._worker, trainer._step, trainer._steps = config, Worker(0, 1, "cpu"), 6, 9
    trainer._saved, trainer._task = 4, SimpleNamespace(name="student")
    trainer._difficulty = DifficultyWeights(N_TASKS, config.sigma_lr, config.log_sigma_bounds)
    trainer._engine = SimpleNamespace(step=lambda lr: 1.0)
    # Finite where losses are added up, and beyond what sigma's own float32 can hold.
    monkeypatch.setattr(Trainer, "_accumulate", lambda *_: torch.full((3,), 1e300, dtype=torch.float64))
    monkeypatch.setattr(loop, "sum_over_workers", lambda values, worker: values)
    with pytest.raises(
        TrainingError, match=r"the sigma of step 7 is not a finite.* good checkpoint is of step 4"
    ):
        trainer._train_step(batch, trainer._difficulty.log_sigma)
