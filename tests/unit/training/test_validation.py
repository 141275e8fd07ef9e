"""What is held out, its loss however it is cut, and the best step."""

from dataclasses import replace

import pytest
import torch
from scripted import CharTokenizer
from training_examples import gold_examples, tokens_of, write_trajectories

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.core.splits import draw, question_of
from steper_ray.training import validation as module
from steper_ray.training.data import load_data
from steper_ray.training.engine import Worker
from steper_ray.training.objective import TASKS
from steper_ray.training.shares import filler
from steper_ray.training.validation import HeldOut, best_and_last, due

LONG = 10**6
EXAMPLES = gold_examples(worlds=3, questions=6)
FILLER = filler(1)


def load(tmp_path, examples=EXAMPLES, *, held_out=None, **settings):
    tokens = tokens_of(write_trajectories(tmp_path / "kept.parquet", examples), CharTokenizer())
    validation, other = dict(settings.pop("validation", {})), None
    if held_out is not None:
        validation["trajectories"] = write_trajectories(tmp_path / "held_out.parquet", held_out)
        other = tokens_of(validation["trajectories"], CharTokenizer())
    config = TrainConfig(row_tokens=LONG, validation=validation, **settings)
    return config, load_data(tokens, config, LONG, other)


def ids(items):
    return {item.question_id for item in items}


def test_more_data_moves_no_question_between_the_sets(tmp_path):
    _, few = load(tmp_path, [e for e in EXAMPLES if draw(e.question_id) > 0.1], validation={"share": 0.4})
    _, many = load(tmp_path, validation={"share": 0.4})
    assert ids(few.held_out) <= ids(many.held_out)
    assert ids(few.items) <= ids(many.items)
    assert ids(many.held_out) == {e.question_id for e in EXAMPLES if draw(e.question_id) < 0.4}
    assert len(ids(many.items)) + len(ids(many.held_out)) == len({e.question_id for e in EXAMPLES})


def test_samples_of_one_question_stay_on_one_side(tmp_path):
    again = [replace(e, question_id=f"{e.question_id}~1", id=f"{e.id}~") for e in EXAMPLES]
    retried = [replace(e, question_id=f"{e.question_id}~2.1", id=f"{e.id}~~") for e in EXAMPLES]
    _, data = load(tmp_path, EXAMPLES + again + retried, validation={"number": 3})
    away, kept = ({question_of(q) for q in ids(items)} for items in (data.held_out, data.items))
    assert len(away) == 3
    assert len(data.held_out) == 9
    assert not away & kept


def test_a_number_of_questions_are_those_that_a_growing_share_takes_first(tmp_path):
    _, data = load(tmp_path, validation={"number": 4})
    assert ids(data.held_out) == set(sorted({e.question_id for e in EXAMPLES}, key=draw)[:4])


def test_other_trajectories_that_are_held_out_leave_the_training_data_as_it_is(tmp_path, caplog):
    _, plain = load(tmp_path)
    _, data = load(tmp_path, held_out=gold_examples(1, 3, seed=11))
    assert (list(data.items), data.steps_per_epoch) == (list(plain.items), plain.steps_per_epoch)
    assert len(data.held_out) == 3
    assert caplog.text == ""
    load(tmp_path, held_out=[*EXAMPLES[:8], *gold_examples(1, 3, seed=11)])
    assert "held_out.parquet: 2 of its trajectories are learned from too" in caplog.text


@pytest.mark.parametrize("validation", [{"share": 1e-9}, {"number": 18}])
def test_a_split_that_leaves_one_side_empty_is_refused(tmp_path, validation):
    with pytest.raises(TrainingError, match=r"of 18 questions .* change train.validation.share or number"):
        load(tmp_path, validation=validation)


def test_an_ability_that_no_held_out_example_has_cannot_choose_the_best(tmp_path):
    with pytest.raises(TrainingError, match="no held-out example of expansion"):
        load(tmp_path, method="vanilla_kd", validation={"number": 3, "keep": "best", "by": "expansion"})


class LengthEngine:
    """Stands for a model: an example's loss is the length of its target."""

    def __init__(self):
        self.evaluating_now = False

    def evaluating(self):
        return self

    def __enter__(self):
        self.evaluating_now = True

    def __exit__(self, *_):
        self.evaluating_now = False

    def losses(self, packed):
        assert self.evaluating_now
        seen = packed.example[packed.example >= 0]
        return torch.bincount(seen, minlength=len(packed.task)).float()


@pytest.mark.parametrize("settings", [{}, {"packing": "padded"}, {"normalize": "per_question"}])
def test_the_loss_is_the_mean_over_examples_however_rows_and_workers_cut_them(
    tmp_path, monkeypatch, settings
):
    validation = {"number": 5}
    config, data = load(tmp_path, validation=validation, rows_per_micro_batch=2, **settings)
    lengths = {task: [] for task in range(len(TASKS))}
    for item in data.held_out:
        for tree in item.trees:
            for branch in tree.branches:
                lengths[branch.task].append(len(branch.target))
    of = 5 if "normalize" in settings else None
    wanted = {TASKS[task].value: sum(found) / (of or len(found)) for task, found in lengths.items()}
    longest = max(len(tree) for item in data.held_out for tree in item.trees)
    for row_tokens, workers in ((longest, 1), (longest, 2), (3 * longest, 3), (3 * longest, 7)):
        cut = config.model_copy(update={"row_tokens": row_tokens})
        parts = []

        def gather(values, worker, parts=parts):
            parts.append(values)
            return torch.stack(parts).sum(dim=0)

        monkeypatch.setattr(module, "sum_over_workers", gather)
        for rank in range(workers):
            held_out = HeldOut(data.held_out, cut, Worker(rank, workers, torch.device("cpu")), FILLER)
            look = held_out.losses(LengthEngine())
        assert look["losses"] == pytest.approx(wanted)
        assert look["loss"] == pytest.approx(sum(wanted.values()))


def test_the_best_look_is_the_first_with_the_lowest_loss_that_the_settings_name():
    def line(step, init, exp):
        return {
            "step": step,
            "validation": {"loss": init + exp, "losses": {"initialization": init, "expansion": exp}},
        }

    records = [{"step": 1}, line(2, 3.0, 1.0), line(4, 1.0, 2.0), line(6, 1.0, 2.0), line(8, 2.5, 0.8)]
    steps = {}
    for by in ("sum", "expansion"):
        config = TrainConfig(validation={"share": 0.1, "by": by}).validation
        steps[by] = {name: look["step"] for name, look in best_and_last(records, config).items()}
    assert steps == {"sum": {"best": 4, "last": 8}, "expansion": {"best": 8, "last": 8}}
    assert best_and_last(records[:1], config) is None
    assert [step for step in range(1, 12) if due(step, 11, 4)] == [4, 8, 11]
