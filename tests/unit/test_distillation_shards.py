"""Shards: content-addressed, committed whole or not at all, and what a run's identity is made of."""

import dataclasses

import pytest
from distilled import question, trajectory

from steper_ray.config.file import load_config
from steper_ray.distillation.identity import digest, run_identity
from steper_ray.distillation.shards import ShardStore, by_question, cut
from steper_ray.errors import DataError, ModelError

QUESTIONS = [question(n) for n in range(7)]


def identity(*overrides, corpus="c"):
    return digest(run_identity(load_config(None, overrides), corpus))


@pytest.fixture
def store(tmp_path):
    store = ShardStore(tmp_path / "shards", "run")
    store.clean()
    return store


@pytest.fixture
def shard():
    return cut([question(1), question(2)], 2, "run")[0]


TRAJECTORIES = [trajectory(1), trajectory(2, reason="step_limit")]


def test_every_question_is_in_one_shard_and_in_order():
    shards = cut(QUESTIONS, 3, "run")
    assert [len(s.questions) for s in shards] == [3, 3, 1]
    assert [q for s in shards for q in s.questions] == QUESTIONS
    assert len({s.id for s in shards}) == 3


def test_a_shards_id_follows_its_content_and_the_run_and_nothing_else():
    ids = [s.id for s in cut(QUESTIONS, 3, "run")]
    assert [s.id for s in cut(QUESTIONS[3:], 3, "run")] == ids[1:]
    assert cut(QUESTIONS, 3, "other run")[0].id != ids[0]
    changed = [dataclasses.replace(QUESTIONS[0], answers=("X",)), *QUESTIONS[1:]]
    assert [s.id for s in cut(changed, 3, "run")][1:] == ids[1:]
    assert cut(changed, 3, "run")[0].id != ids[0]


def test_duplicate_question_ids_are_named():
    with pytest.raises(DataError, match="'q3' comes 2 times"):
        cut([*QUESTIONS, QUESTIONS[3]], 3, "run")


def test_a_committed_shard_reads_back_equal(store, shard):
    assert store.manifest(shard.id) is None
    store.commit(shard, TRAJECTORIES)
    assert store.read(shard.id) == TRAJECTORIES
    manifest = store.manifest(shard.id)
    assert manifest.question_ids == ("q1", "q2")
    assert manifest.stop_reasons == {"answered": 1, "step_limit": 1}


def test_the_first_commit_of_a_shard_stands(store, shard):
    first = store.commit(shard, TRAJECTORIES)
    files = {path: path.stat().st_ino for path in store.folder.iterdir()}
    assert store.commit(shard, [dataclasses.replace(t, answer="other") for t in TRAJECTORIES]) == first
    assert {path: path.stat().st_ino for path in store.folder.iterdir()} == files
    assert store.read(shard.id) == TRAJECTORIES


def test_a_shard_is_no_shard_without_both_of_its_files_whole(store, shard):
    for ending in ("json", "parquet"):
        store.commit(shard, TRAJECTORIES)
        (store.folder / f"shard-{shard.id}.{ending}").unlink()
        assert store.manifest(shard.id) is None
    store.commit(shard, TRAJECTORIES)
    data = store.folder / f"shard-{shard.id}.parquet"
    data.write_bytes(data.read_bytes()[:-10])
    assert store.manifest(shard.id) is None


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(store, shard):
    store.commit(shard, TRAJECTORIES)
    (store.folder / ".writing-x").write_text("half")
    store.clean()
    assert sorted(p.suffix for p in store.folder.iterdir()) == [".json", ".parquet"]
    assert store.manifest(shard.id) is not None


def test_a_shard_with_a_lost_trajectory_is_never_committed(store, shard):
    with pytest.raises(ValueError, match="not those of its questions"):
        store.commit(shard, TRAJECTORIES[:1])
    assert store.manifest(shard.id) is None


def test_an_unreadable_shard_is_named_with_the_fix(store, shard):
    (store.folder / f"shard-{shard.id}.parquet").write_text("junk")
    with pytest.raises(DataError, match="Delete it"):
        store.read(shard.id)


@pytest.mark.parametrize(
    "override",
    [
        "build.teacher=annotation",
        "sampling.temperature=0.7",
        "sampling.seed=1",
        "reasoning.k=3",
        "reasoning.max_passage_chars=500",
        "reasoning.long_passages=leave_out",
        "reasoning.framework=self_ask",
        "retrieval.b=0.5",
        "engine.model=miniature:base",
        "engine.max_model_len=512",
    ],
)
def test_what_changes_a_trajectory_changes_the_identity(override):
    assert identity(override) != identity()


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "build.shard_size=3",
        "build.engines=2",
        "build.match=contains",
        "engine.max_batch=1",
        "engine.retries=1",
        "engine.requests_per_minute=1",
        "engine.tokens_per_minute=1",
        "retrieval.index_dir=elsewhere",
        "train.lr=1",
        "reasoning.stop=stable",
        "reasoning.confidence=0.9",
    ],
)
def test_what_changes_no_trajectory_leaves_the_identity(override):
    assert identity(override) == identity()


def test_another_corpus_is_another_identity():
    assert identity(corpus="d") != identity()


def test_the_annotation_teacher_does_not_depend_on_the_engine():
    assert identity("build.teacher=annotation", "engine.model=/none") == identity("build.teacher=annotation")
    with pytest.raises(ModelError, match="no such folder"):
        identity("engine.model=/none")


def test_retrained_weights_and_edited_demonstrations_are_another_identity(tmp_path):
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "a")):
        (tmp_path / name).write_text(text)
    demonstrations = tmp_path / "demonstrations.txt"
    demonstrations.write_text("one")
    overrides = (f"engine.model={tmp_path}", f"reasoning.demonstrations={demonstrations}")
    first = identity(*overrides)
    assert identity(*overrides) == first
    (tmp_path / "model.safetensors").write_text("b")
    second = identity(*overrides)
    assert second != first
    demonstrations.write_text("two")
    assert identity(*overrides) != second


def test_the_samples_of_a_question_stand_together_each_once_and_no_question_is_missing(store, shard):
    one, other = TRAJECTORIES
    samples = [one, dataclasses.replace(one, sample=1), dataclasses.replace(one, sample=1, attempt=1), other]
    store.commit(shard, samples)
    assert store.read(shard.id) == samples
    for wrong in ([other, one], [one, other, one], [one, one, other]):
        with pytest.raises(ValueError, match="not those of its questions"):
            store.commit(shard, wrong)


def test_what_several_teachers_made_of_a_question_stands_together_in_the_first_ones_order():
    streams = [["a1", "a2", "b1", "c1"], [], ["b3", "b4", "c3"], ["a5"]]
    assert list(by_question(streams, lambda made: made[0])) == [
        ("a1", "a2", "a5"),
        ("b1", "b3", "b4"),
        ("c1", "c3"),
    ]


@pytest.mark.parametrize("again", ["build.self_correct=true", "sampling.temperature=1 build.samples=2"])
def test_what_counts_as_right_is_part_of_the_identity_where_it_decides_what_is_asked(again):
    overrides = again.split()
    assert identity(*overrides, "build.match=contains") != identity(*overrides)
    assert identity(*overrides, "build.ask=all") != identity(*overrides)
