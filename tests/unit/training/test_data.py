"""Examples become trees and batches: the prompts of the layout, the same order everywhere, nothing cut in silence."""

import dataclasses
import logging
from collections import Counter

import pytest
from scripted import CharTokenizer
from training_examples import gold_examples, tokens_of, trajectories_of, write_trajectories

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.data.examples import make_examples
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.prompts import PromptEncoder
from steper_ray.schema import Ability
from steper_ray.training.data import check_vocabulary, load_data
from steper_ray.training.objective import TASKS
from steper_ray.training.shares import split

EXAMPLES = gold_examples(worlds=3, questions=5)
TRAJECTORIES = trajectories_of(EXAMPLES)
LONG = 1_000_000


@pytest.fixture
def path(tmp_path):
    return write_trajectories(tmp_path / "kept" / "part-0.parquet", EXAMPLES)


def load(path, **settings):
    config = TrainConfig(**{"row_tokens": 5000, "batch_examples": 12, **settings})
    return config, load_data(tokens_of(path, CharTokenizer()), config, LONG)


def test_a_branch_reads_what_the_engine_is_sent_at_its_step_and_learns_the_cumulative_chain(path):
    _, data = load(path)
    encoder, by_id = PromptEncoder(CharTokenizer(), FRAMEWORKS["ircot"].layout), {}
    for example in EXAMPLES:
        by_id.setdefault(example.question_id, []).append(example)
    for item in data.items:
        (tree,) = item.trees
        for branch, example in zip(tree.branches, by_id[item.question_id], strict=True):
            shown = [p for step in example.passages for p in step]
            ids = [*tree.trunk[: branch.cut], *branch.prompt]
            assert ids == encoder.prompt(example.question, shown, [])
            assert list(branch.target) == encoder.target(example.chain)
            assert TASKS[branch.task] is example.ability


@pytest.mark.parametrize("packing", ["rows", "padded"])
def test_examples_that_share_nothing_are_the_same_ones_one_a_tree(path, packing):
    (_, trees), (_, padded) = load(path), load(path, packing=packing)
    for item, alone in zip(trees.items, padded.items, strict=True):
        (tree,) = item.trees
        assert [t.branches for t in alone.trees] == [(b,) for b in tree.branches]
        assert [t.trunk for t in alone.trees] == [tree.trunk[: b.cut] for b in tree.branches]


def test_vanilla_kd_keeps_the_aggregation_examples_alone(path):
    _, data = load(path, method="vanilla_kd")
    assert len(data.items) == len({e.question_id for e in EXAMPLES})
    assert all(item.counts() == [0, 0, 1] for item in data.items)


def abilities(data):
    return {i.question_id: [TASKS[b.task] for tree in i.trees for b in tree.branches] for i in data.items}


def test_the_steps_between_vanilla_kd_and_steper_are_those_of_figure_3(tmp_path):
    first, *rest = TRAJECTORIES
    of_two_steps, some = first.id, [dataclasses.replace(first, steps=first.steps[:2]), *rest]
    path = write_trajectories(tmp_path / "some.parquet", some)
    by_id = {t.id: [e.ability for e in make_examples(t)] for t in some}
    final, first_final, one_mid, everything = (
        abilities(load(path, **settings)[1])
        for settings in (
            {"method": "vanilla_kd"},
            {"steps": "first_final"},
            {"steps": "first_mid_final"},
            {},
        )
    )
    assert everything == by_id
    assert any(steps.count(Ability.EXPANSION) > 1 for steps in by_id.values())
    assert Ability.EXPANSION not in by_id[of_two_steps]
    for question, steps in by_id.items():
        middle = [Ability.EXPANSION] * min(1, steps.count(Ability.EXPANSION))
        assert final[question] == [Ability.AGGREGATION]
        assert first_final[question] == [Ability.INITIALIZATION, Ability.AGGREGATION]
        assert one_mid[question] == [Ability.INITIALIZATION, *middle, Ability.AGGREGATION]


def middles(data):
    """The step that was drawn, by its question and its place in the trunk."""
    expansion = TASKS.index(Ability.EXPANSION)
    return {i.question_id: b.cut for i in data.items for b in i.trees[0].branches if b.task == expansion}


def test_the_middle_step_is_drawn_from_the_seed_and_the_question_alone(path, tmp_path):
    write_trajectories(tmp_path / "turned" / "a.parquet", TRAJECTORIES[::-1])
    drawn = [
        middles(load(p, steps="first_mid_final", seed=seed)[1])
        for p, seed in ((path, 1), (tmp_path / "turned", 1), (path, 2))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    some = [t for t in TRAJECTORIES if t.id in list(drawn[0])[:4]]
    fewer = middles(
        load(write_trajectories(tmp_path / "fewer.parquet", some), steps="first_mid_final", seed=1)[1]
    )
    assert len(fewer) == 4
    assert fewer.items() <= drawn[0].items()


def test_both_methods_make_steps_of_as_many_examples(path):
    for method in ("steper", "vanilla_kd"):
        _, data = load(path, method=method, batch_examples=5)
        assert sum(data.batch(0).counts) == pytest.approx(5, abs=2)


def test_order_and_batches_are_the_same_however_the_shards_were_written(path, tmp_path):
    write_trajectories(tmp_path / "other" / "b.parquet", TRAJECTORIES[:4])
    write_trajectories(tmp_path / "other" / "a.parquet", TRAJECTORIES[:3:-1])
    (_, one), (_, two) = load(path, seed=3), load(tmp_path / "other", seed=3)
    assert [one.batch(s).question_ids for s in range(8)] == [two.batch(s).question_ids for s in range(8)]


def test_another_seed_or_epoch_is_another_order(path):
    (_, one), (_, two) = load(path, seed=1), load(path, seed=2)
    assert one.batch(0).question_ids != two.batch(0).question_ids
    assert one.batch(0).question_ids != one.batch(one.steps_per_epoch).question_ids


def test_an_epoch_shows_every_trajectory_once_in_batches_of_even_size(path):
    _, data = load(path)
    batches = [data.batch(step).question_ids for step in range(data.steps_per_epoch)]
    assert Counter(q for b in batches for q in b) == Counter(item.question_id for item in data.items)
    sizes = [len(b) for b in batches]
    assert len(sizes) > 1
    assert max(sizes) - min(sizes) <= 1
    assert data.batch(data.steps_per_epoch).epoch == 1


def test_rows_hold_several_examples_where_padding_gives_each_a_row_of_its_own(path):
    rows = {}
    for packing in ("rows", "padded"):
        config, data = load(path, packing=packing, row_tokens=4000)
        (share,) = split(data.batch(0), 1, config)
        rows[packing] = [row for micro_batch in share.micro_batches for row in micro_batch]
    assert all(len(row) == 1 for row in rows["padded"])
    assert max(len(row) for row in rows["rows"]) > 1
    assert sum(map(len, rows["rows"])) == len(rows["padded"])


@pytest.mark.parametrize("packing", ["tree", "rows", "padded"])
def test_workers_share_a_batch_whole_balanced_and_in_equally_many_forward_passes(path, packing):
    config, data = load(path, packing=packing, rows_per_micro_batch=1, row_tokens=4000)
    batch = data.batch(0)
    shares = split(batch, 3, config)
    assert sorted(len(t) for s in shares for t in s.trees) == sorted(
        len(t) for i in batch.items for t in i.trees
    )
    assert len({len(share.micro_batches) for share in shares}) == 1
    for share in shares:
        rows = [row for micro_batch in share.micro_batches for row in micro_batch]
        assert sorted(i for row in rows for i in row) == list(range(len(share.trees)))
    loads = [sum(len(t) for t in share.trees) for share in shares]
    assert max(loads) - min(loads) <= max(item.tokens for item in batch.items)


def test_a_worker_without_a_trajectory_still_runs_every_forward_pass(path):
    config, data = load(path, batch_examples=1)
    shares = split(data.batch(0), 2, config)
    assert [len(share.trees) for share in shares] == [1, 0]
    assert shares[1].micro_batches == ([],)


def test_a_trajectory_that_is_too_long_is_named_and_left_out_whole(path, caplog):
    _, data = load(path)
    longest = max(data.items, key=lambda item: item.tokens)
    with caplog.at_level(logging.WARNING):
        _, rest = load(path, row_tokens=longest.tokens - 1)
    assert {i.question_id for i in data.items} - {i.question_id for i in rest.items} == {longest.question_id}
    assert longest.question_id in caplog.text
    assert "raise `train.row_tokens`" in caplog.text


def test_an_example_longer_than_the_models_positions_is_left_out_too(path, caplog):
    config = TrainConfig(row_tokens=100_000)
    _, data = load(path)
    longest = max(b.cut + len(b.prompt) + len(b.target) for i in data.items for b in i.trees[0].branches)
    with caplog.at_level(logging.WARNING):
        rest = load_data(tokens_of(path, CharTokenizer()), config, longest - 1)
    assert len(rest.items) < len(data.items)
    assert f"the model takes {longest - 1}" in caplog.text


def test_nothing_but_trajectories_that_are_too_long_is_an_error_with_the_fix(path):
    with pytest.raises(
        TrainingError, match=r"all 15 trajectories are too long: raise `train.row_tokens` \(50;"
    ):
        load(path, row_tokens=50)


@pytest.mark.parametrize("without", [[], [dataclasses.replace(TRAJECTORIES[0], steps=())]])
def test_no_trajectory_to_learn_from_is_an_error(tmp_path, without):
    with pytest.raises(TrainingError, match="no trajectories: nothing to train on"):
        load(write_trajectories(tmp_path / "none.parquet", without))


def test_a_missing_path_and_an_empty_folder_say_what_to_do(tmp_path):
    with pytest.raises(TrainingError, match="no such file or folder of trajectories: run the build stage"):
        load(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match=r"no \*.parquet file below"):
        load(tmp_path)


def test_two_trajectories_of_one_id_are_refused(tmp_path):
    twice = write_trajectories(tmp_path / "twice.parquet", [*TRAJECTORIES, TRAJECTORIES[3]])
    with pytest.raises(TrainingError, match=rf"trajectory {TRAJECTORIES[3].id} comes twice"):
        load(twice)


def one_step():
    """Trajectories that were answered at once."""
    return [dataclasses.replace(t, steps=(t.steps[-1],)) for t in TRAJECTORIES]


def test_an_ability_that_no_example_teaches_is_told_with_what_becomes_of_sigma(tmp_path, caplog):
    at_once = write_trajectories(tmp_path / "at_once.parquet", one_step())
    load(at_once)
    assert "no example of initialization and expansion among 15" in caplog.text
    assert "their sigma stays where it starts" in caplog.text
    caplog.clear()
    load(at_once, weighting="uniform")
    assert "no example of initialization and expansion" in caplog.text
    assert "sigma" not in caplog.text


def test_an_ability_that_was_not_asked_for_is_not_missed(path, caplog):
    load(path)
    load(path, method="vanilla_kd")
    load(path, steps="first_final")
    assert caplog.text == ""


def test_a_token_beyond_the_models_vocabulary_is_refused_with_its_trajectory(path):
    _, data = load(path)
    top = {i.question_id: max(t for tree in i.trees for t in tree.trunk) for i in data.items}
    highest = max(top.values())
    check_vocabulary(data, highest + 1, "student")
    with pytest.raises(
        TrainingError, match=rf"trajectory \S+: token {highest} of .* vocabulary of {highest}:"
    ) as error:
        check_vocabulary(data, highest, "student")
    assert top[str(error.value).split()[1].rstrip(":")] == highest
