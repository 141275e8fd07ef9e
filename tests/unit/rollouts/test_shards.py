"""Shards and question files: content-addressed, committed whole or not at all, verified, and a set's identity."""

import dataclasses
import json
import pathlib
import random
from pathlib import Path

import pyarrow as pa
import pytest
from distilled import question, rollout_set, trajectory

from steper_ray.config.file import load_config
from steper_ray.core.errors import DataError, ModelError
from steper_ray.core.files import TEMPORARY, write_table
from steper_ray.core.fingerprints import digest
from steper_ray.data.build import _spec, _teachers
from steper_ray.rollouts.questions import write_questions
from steper_ray.rollouts.shards import DamagedShardError, Owed, ShardStore
from steper_ray.rollouts.spec import at_fixed_steps
from steper_ray.schema import StopReason

QUESTIONS = [question(n) for n in range(7)]
TRAJECTORIES = [trajectory(1), trajectory(2, reason="step_limit")]
OWED = Owed("q3", 0, 0, "busy", 2)


def identity(*overrides, corpus="c"):
    config = at_fixed_steps(load_config(None, overrides))
    return _spec(config, _teachers(config)[0], Path("index"), corpus, [])[0].store.identity


@pytest.fixture
def store(tmp_path):
    return ShardStore(tmp_path / "shards", "run")


def flip(path, rng):
    """One bit of a file, which is returned to be flipped back."""
    data, at, bit = bytearray(path.read_bytes()), rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
    data[at] ^= bit
    path.write_bytes(data)

    def back():
        data[at] ^= bit
        path.write_bytes(data)

    return back


def test_every_question_is_in_one_shard_and_in_order(tmp_path):
    file = write_questions(tmp_path, QUESTIONS, 3)
    assert [len(file.read(shard)) for shard in range(len(file))] == [3, 3, 1]
    assert list(file) == QUESTIONS
    assert file.count == 7
    assert len(set(file.digests)) == 3
    assert {p.suffix for p in tmp_path.iterdir()} == {".arrow", ".json"}


def test_a_shards_id_follows_its_questions_and_the_identity_and_nothing_else(tmp_path, store):
    digests = write_questions(tmp_path, QUESTIONS, 3).digests
    assert write_questions(tmp_path, QUESTIONS[3:], 3).digests == digests[1:]
    changed = [dataclasses.replace(QUESTIONS[0], answers=("X",)), *QUESTIONS[1:]]
    other = write_questions(tmp_path, changed, 3)
    assert (other.digests[0] != digests[0], other.digests[1:]) == (True, digests[1:])
    assert other.key != write_questions(tmp_path, QUESTIONS, 3).key
    assert store.shard_id(digests[0]) != ShardStore(store.folder, "other").shard_id(digests[0])


def test_a_file_of_known_questions_is_not_written_again_unless_it_is_damaged(tmp_path):
    first = write_questions(tmp_path, QUESTIONS, 3, name="source")

    def read():
        raise AssertionError("not read")
        yield

    assert write_questions(tmp_path, read(), 3, name="source") == first
    assert write_questions(tmp_path, QUESTIONS, 2, name="source") != first
    for path in (first.path, first.path.with_suffix(".json")):
        flip(path, random.Random(0))
        assert write_questions(tmp_path, QUESTIONS, 3, name="source") == first
    assert list(first) == QUESTIONS


def test_a_damaged_question_file_is_named(tmp_path):
    file = write_questions(tmp_path, QUESTIONS, 3)
    flip(file.path, random.Random(1))
    with pytest.raises(DataError, match=r"\.arrow: changed since it was written"):
        file.read(0)


def test_duplicate_question_ids_are_named(tmp_path):
    with pytest.raises(DataError, match="'q3' comes twice"):
        write_questions(tmp_path, [*QUESTIONS, QUESTIONS[3]], 3)
    assert list(tmp_path.iterdir()) == []


def test_a_committed_shard_reads_back_equal(store):
    assert store.manifest("a") is None
    store.commit("a", TRAJECTORIES, [OWED], ["sha"])
    assert list(store.read("a")) == TRAJECTORIES
    manifest = store.manifest("a")
    assert (manifest.owed, manifest.before) == ((OWED,), ("sha",))
    assert manifest.stop_reasons == {"answered": 1, "step_limit": 1}
    assert [p.name for p in store.folder.glob(f"{TEMPORARY}*")] == []


def test_a_shard_of_a_version_with_fewer_fields_is_read(store):
    shard = store.shard_id("q")
    store.commit(shard, TRAJECTORIES)
    table = store.table(shard)
    rows = table.to_pylist()
    for row in rows:
        for step in row["steps"]:
            del step["supported"], step["injected"]
    file, note = store.folder / f"shard-{shard}.parquet", store.folder / f"shard-{shard}.json"
    sha256 = write_table(file, pa.Table.from_pylist(rows))
    fields = json.loads(note.read_text()) | {"sha256": sha256}
    fields["check"] = digest({name: value for name, value in fields.items() if name != "check"})
    note.write_text(json.dumps(fields))
    assert store.table(shard).equals(table)
    assert list(store.read(shard)) == TRAJECTORIES


def test_a_complete_commit_stands_and_one_that_owes_is_replaced(store):
    store.commit("a", TRAJECTORIES[:1], [OWED])
    whole = store.commit("a", TRAJECTORIES)
    assert store.commit("a", TRAJECTORIES[:1]) == whole
    assert list(store.read("a")) == TRAJECTORIES
    assert sorted(p.name for p in store.folder.iterdir()) == [whole.file, "shard-a.json"]


def test_shards_and_questions_of_a_store_are_read_together(bucket_folder):
    file = write_questions(bucket_folder / "questions", QUESTIONS, 3)
    assert list(file) == QUESTIONS
    store = ShardStore(bucket_folder / "shards", "run")
    ids = [store.shard_id(digest) for digest in file.digests]
    assert store.manifests(ids) == [None, None, None]
    first = store.commit(ids[0], TRAJECTORIES)
    owing = store.commit(ids[2], TRAJECTORIES[:1], [OWED])
    assert store.manifests(ids) == [first, None, owing]
    again = store.commit(ids[2], TRAJECTORIES)
    assert store.manifests(ids) == [first, None, again]
    assert list(store.read(ids[2])) == TRAJECTORIES
    (store.folder / first.file).unlink()
    assert store.manifests(ids) == [None, None, again]
    other = ShardStore(bucket_folder / "other", "run")
    other.adopt(store.folder)
    assert other.manifests(ids) == [None, None, again]


def test_what_is_committed_stands_at_every_moment_of_a_further_commit(store, monkeypatch):
    first = store.commit("a", TRAJECTORIES[:1], [OWED])
    replace, kills = pathlib.Path.replace, 0

    def killed(path, target):
        raise KeyboardInterrupt

    for kept in range(2):  # the table, then the manifest
        left = [kept]

        def replace_some(path, target, left=left):
            left[0] -= 1
            return replace(path, target) if left[0] >= 0 else killed(path, target)

        monkeypatch.setattr(pathlib.Path, "replace", replace_some)
        with pytest.raises(KeyboardInterrupt):
            store.commit("a", TRAJECTORIES)
        monkeypatch.undo()
        kills += 1
        assert store.manifest("a") == first
        assert list(store.read("a")) == TRAJECTORIES[:1]
    assert kills == 2
    store.commit("a", TRAJECTORIES)
    assert list(store.read("a")) == TRAJECTORIES


def test_every_flipped_bit_of_a_shard_is_noticed(store):
    store.commit("a", TRAJECTORIES, [OWED])
    rng, manifest = random.Random(7), store.manifest("a")
    table, note = (store.folder / f"shard-a.{ending}" for ending in ("parquet", "json"))
    for _ in range(200):
        back = flip(table, rng)
        with pytest.raises(
            DamagedShardError, match=r"shard-a\.parquet: changed since it was written.*this shard alone"
        ):
            list(store.read("a"))
        back()
        back = flip(note, rng)
        assert store.manifest("a") in (None, manifest)  # a flipped blank changes nothing
        back()
    assert list(store.read("a")) == TRAJECTORIES


def test_a_shard_that_holds_another_ones_rows_or_none_is_noticed_and_dropped(store):
    for shard, trajectories in (("a", TRAJECTORIES), ("b", TRAJECTORIES[:1])):
        store.commit(shard, trajectories)
    table = store.folder / "shard-a.parquet"
    table.write_bytes((store.folder / "shard-b.parquet").read_bytes())
    with pytest.raises(DamagedShardError):
        list(store.read("a"))
    assert store.drop_damaged("a")
    assert not store.drop_damaged("b")
    assert store.manifest("a") is None
    (store.folder / "shard-b.json").rename(store.folder / "shard-a.json")
    assert store.manifest("a") is None
    table.unlink()
    assert store.manifest("a") is None


def test_a_set_names_what_it_owes_and_what_is_missing(tmp_path):
    found = rollout_set(tmp_path, TRAJECTORIES, [(question(3), "busy")], size=1)
    assert found.missing() == [2]
    assert [(one.question, one.error) for one in found.owed()] == [("q3", "busy")]
    assert list(found) == TRAJECTORIES
    found.spec.store.drop(found.shards[0])
    assert found.missing() == [0, 2]


def test_what_circumstances_did_is_owed_and_what_the_question_did_is_final():
    owed = {reason for reason in StopReason if reason.is_owed}
    assert owed == {StopReason.RETRIEVER_FAILED, StopReason.GENERATOR_FAILED}


@pytest.mark.parametrize(
    "override",
    [
        "build.teacher=annotation",
        "sampling.temperature=0.7",
        "sampling.seed=1",
        "reasoning.k=3",
        "reasoning.max_passage_chars=500",
        "reasoning.long_passages=leave_out",
        "build.teachers=[{engine: {model: 'miniature:teacher'}, hops: [2]}]",
        "reasoning.search={beams: 2}",
        "reasoning.escalate={engine: {kind: openai, model: m, url: 'http://h/v1'}}",
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
        "build.max_failed=1",
        "engine.max_batch=1",
        "engine.retries=1",
        "engine.requests_per_minute=1",
        "engine.tokens_per_minute=1",
        "retrieval.index_dir=elsewhere",
        "retrieval.cache_queries=0",
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
    assert identity("build.teacher=annotation") != identity(
        "build.teacher=annotation", "build.annotation.missing=keep"
    )
    assert identity("build.teacher=annotation", "engine.model=/none") == identity("build.teacher=annotation")
    with pytest.raises(ModelError, match="no such folder"):
        identity("engine.model=/none")


def test_retrained_weights_and_edited_demonstrations_are_another_identity(tmp_path):
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("pytorch_model.bin", "a")):
        (tmp_path / name).write_text(text)
    demonstrations = tmp_path / "demonstrations.txt"
    demonstrations.write_text("one")
    overrides = (f"engine.model={tmp_path}", f"reasoning.demonstrations={demonstrations}")
    first = identity(*overrides)
    assert identity(*overrides) == first
    (tmp_path / "pytorch_model.bin").write_text("b")
    second = identity(*overrides)
    assert second != first
    demonstrations.write_text("two")
    assert identity(*overrides) != second


@pytest.mark.parametrize("again", ["build.self_correct=true", "sampling.temperature=1 build.samples=2"])
def test_what_counts_as_right_is_part_of_the_identity_where_it_decides_what_is_asked(again):
    overrides = again.split()
    assert identity(*overrides, "build.match=contains") != identity(*overrides)
    assert identity(*overrides, "build.ask=all") != identity(*overrides)
