"""Committed shards -> kept trajectories, dropped ids and a manifest; counts, recall and progress."""

import dataclasses
import json

import pyarrow.parquet as pq
import pytest
from distilled import assembled, question, rollout_set, trajectory

from steper_ray.config import Config
from steper_ray.core.files import file_sha256
from steper_ray.data import assemble as room
from steper_ray.rollouts.shards import DamagedShardError
from steper_ray.schema import TRAJECTORY_SCHEMA, StepScore, Usage, trajectory_from_row

TRAJECTORIES = [
    trajectory(1),
    trajectory(2, answer="Bo"),
    trajectory(3, pieces=["So the answer is: Cem."], found=[(0,)]),
    trajectory(4, pieces=["A.", "B.", "So the answer is: Cem."], found=[(3,), (1,), (2,)]),
    trajectory(5, pieces=[], found=[], answer="", reason="rejected"),
]


@pytest.fixture
def build(tmp_path):
    return lambda trajectories=TRAJECTORIES, **settings: assembled(tmp_path, trajectories, **settings)


def parts(folder):
    return sorted((folder / "kept").glob("*.parquet"))


def read(folder):
    return [trajectory_from_row(row) for part in parts(folder) for row in pq.read_table(part).to_pylist()]


def settled(t):
    """What is kept of it: nothing that differs between two runs over the same inputs."""
    return dataclasses.replace(
        t, steps=tuple(dataclasses.replace(s, generation_seconds=0.0) for s in t.steps)
    )


def test_counts_add_up_and_the_kept_are_written_in_input_order(build):
    report = build()
    assert (report.questions, report.kept) == (5, 3)
    assert report.dropped == {"rejected": 1, "wrong_answer": 1}
    assert report.examples == {"initialization": 2, "expansion": 1, "aggregation": 3}
    assert report.stop_reasons == {"answered": 4, "rejected": 1}
    assert read(report.folder) == [settled(TRAJECTORIES[n]) for n in (0, 2, 3)]
    assert pq.read_schema(parts(report.folder)[0]).metadata == TRAJECTORY_SCHEMA.metadata


def test_dropped_questions_are_named_with_their_reason(build):
    lines = (build().folder / "dropped.jsonl").read_text().splitlines()
    assert [(row["id"], row["reason"]) for row in map(json.loads, lines)] == [
        ("q2", "wrong_answer"),
        ("q5", "rejected"),
    ]


def test_the_manifest_ties_config_identity_and_counts_together(build):
    report = build()
    manifest = json.loads((report.folder / "manifest.json").read_text())
    (teacher,) = manifest["teachers"]
    assert teacher["identity"]["teacher"] == "engine"
    assert manifest["counts"]["dropped"] == report.dropped
    assert manifest["config"]["reasoning"]["k"] == 4
    assert len(teacher["shards"]) == report.shards == 3
    assert len(manifest["code"]) == 64
    assert manifest["kept_sha256"] == {part.name: file_sha256(part) for part in parts(report.folder)}


def test_the_same_trajectories_give_the_same_bytes_whatever_their_times_and_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "QUESTIONS_A_PART", 3)
    other = {
        "generation_seconds": 9.0,
        "retrieval_seconds": 2.0,
        "usage": Usage(9, 8, 7),
        "mean_logprob": -0.1,
        "confidence": 0.3,
    }
    folders = []
    for name, change in (("one", {}), *((name, {name: value}) for name, value in other.items())):
        steps = [tuple(dataclasses.replace(s, **change) for s in t.steps) for t in TRAJECTORIES]
        made = [dataclasses.replace(t, steps=own) for t, own in zip(TRAJECTORIES, steps, strict=True)]
        folders.append(assembled(tmp_path / name, made).folder)
    first, *others = ([part.read_bytes() for part in parts(folder)] for folder in folders)
    assert len(first) == 3
    assert others == [first] * len(other)
    assert {p.name for p in folders[0].iterdir()} == {
        "trajectories",
        "kept",
        "dropped.jsonl",
        "dropped.md",
        "manifest.json",
        "owed.jsonl",
        "report.json",
    }


def test_files_of_an_earlier_build_do_not_stay(build, monkeypatch):
    monkeypatch.setattr(room, "QUESTIONS_A_PART", 1)
    assert len(parts(build().folder)) == 3
    assert len(parts(build(TRAJECTORIES[:1]).folder)) == 1


def test_nothing_kept_leaves_an_empty_file_with_the_schema(build):
    report = build(TRAJECTORIES[1:2])
    assert report.kept == 0
    assert read(report.folder) == []
    assert pq.read_schema(parts(report.folder)[0]).equals(TRAJECTORY_SCHEMA)


def test_recall_grows_over_the_steps_and_an_early_end_keeps_what_it_found(build):
    report = build(
        [
            trajectory(1, found=[(1,), (2,)]),  # 1/2, 1, then 1
            trajectory(2, pieces=["a", "b", "c"], found=[(0,), (1,), (5,)]),  # 0, 1/2, 1/2
            trajectory(3, gold=()),
            TRAJECTORIES[4],
        ]
    )
    assert report.recall == (0.25, 0.75, 0.75, 0.75, 0.75)
    assert report.recall_trajectories == 2
    assert report.mean_steps == pytest.approx(7 / 3)


def test_a_rejected_question_is_named_on_the_console_with_its_reason(build):
    report = build(
        [*TRAJECTORIES[:4], dataclasses.replace(TRAJECTORIES[4], error="it has 9 tokens too many")]
    )
    assert "rejected    1 questions, the first: it has 9 tokens too many" in report.summary()


def test_what_is_owed_is_counted_and_named_and_is_no_trajectory(build):
    report = build(TRAJECTORIES[:3], owed=[(question(9), "busy")])
    assert (report.questions, report.trajectories, report.owed) == (4, 3, 1)
    (line,) = (report.folder / "owed.jsonl").read_text().splitlines()
    assert json.loads(line) == {"question": "q9", "sample": 0, "attempt": 0, "error": "busy", "attempts": 1}
    assert "owed        1 questions: build again" in report.summary()
    assert json.loads((report.folder / "manifest.json").read_text())["counts"]["owed"] == 1


def test_questions_that_find_no_passage_are_counted_with_what_to_look_at(tmp_path):
    """A step that finds nothing new later on is no such question, and neither is one without a step."""
    later, none = (
        trajectory(2, found=((1,), ())),
        trajectory(3, pieces=(), found=(), answer="", reason="rejected"),
    )
    report = assembled(tmp_path, [trajectory(1, found=((), (2,))), later, none, trajectory(4)])
    assert report.found_nothing == 1
    assert "not found   1 of 4 chains found no passage for their question" in report.summary()
    assert "not found" not in assembled(tmp_path / "other", [trajectory(1)]).summary()


def test_the_same_shards_are_assembled_once_and_again_where_a_kept_file_was_changed(tmp_path):
    found = rollout_set(tmp_path, TRAJECTORIES)
    first = room.assemble(Config(run_dir=tmp_path), [found], run=3, skipped=0)
    times = {part: part.stat().st_mtime_ns for part in first.folder.rglob("*.parquet")}
    again = room.assemble(Config(run_dir=tmp_path), [found], run=0, skipped=0)
    assert again == dataclasses.replace(first, shards_run=0)
    assert {part: part.stat().st_mtime_ns for part in first.folder.rglob("*.parquet")} == times
    (part,) = parts(first.folder)
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])
    room.assemble(Config(run_dir=tmp_path), [found], run=0, skipped=0)
    assert part.read_bytes() == whole


def test_a_damaged_shard_is_never_assembled(tmp_path):
    found = rollout_set(tmp_path, TRAJECTORIES)
    shard = next(found.spec.folder.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedShardError, match=shard.name):
        room.assemble(Config(run_dir=tmp_path), [found], run=0, skipped=0)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_the_summary_tells_the_counts(build):
    text = build().summary()
    assert "5, kept 3, dropped 2 (rejected 1, wrong_answer 1)" in text
    assert "recall@4" in text


SUPPORTED = trajectory(6, pieces=["T1 is in text 1.", "So the answer is: text 2."], found=[(1,), (2,)])
INVENTED = trajectory(7, pieces=["T1 is in Zog.", "So the answer is: text 2."], found=[(1,), (2,)])


def right(t):
    return dataclasses.replace(t, answer="Cem")


def test_a_right_answer_with_a_step_below_a_threshold_is_dropped_and_told(build):
    report = build([right(SUPPORTED), right(INVENTED), TRAJECTORIES[1]], grounding=0.9)
    assert report.kept == 1
    assert report.dropped == {"unverified_grounding": 1, "wrong_answer": 1}
    count = report.verifiers["grounding"]
    assert (count.trajectories, count.below, count.steps, count.mean) == (2, 1, 4, pytest.approx(3.5 / 4))
    assert "grounding   1 of 2 below 0.9, mean 0.875 over 4 steps" in report.summary()
    told = [json.loads(line) for line in (report.folder / "dropped.jsonl").read_text().splitlines()]
    assert told[0] == {
        "id": "q7",
        "reason": "unverified_grounding",
        "error": "step 1: grounding 0.500 < 0.9: T1 is in Zog.",
    }
    assert "- step 1 [grounding 0.500]: T1 is in Zog." in (report.folder / "dropped.md").read_text()
    manifest = json.loads((report.folder / "manifest.json").read_text())
    assert manifest["verifiers"]["grounding"]["below"] == 1


def test_every_step_has_its_scores_whether_kept_or_not(build):
    folder = build([right(SUPPORTED), right(INVENTED), TRAJECTORIES[1]], grounding=0.9, support=0.2).folder
    rows = pq.read_table(folder / "step_scores").to_pylist()
    assert len(rows) == 2 * 2 * 3
    assert rows[4] == {"question_id": "q7", "step": 1, "verifier": "grounding", "score": 0.5}


def test_scores_of_models_reach_their_own_trajectory_and_are_written_in_its_place(build, monkeypatch):
    samples = [
        dataclasses.replace(right(t), question=question(number), sample=sample)
        for number in range(1, 5)
        for sample, t in enumerate((INVENTED, SUPPORTED))
    ]
    told = [
        StepScore(t.id, step, "judge", 0.1 if (t.id, step) == ("q3", 2) else 0.9)
        for t in reversed(samples)  # a shard holds them in whatever order
        for step in (1, 2)
    ]
    expected = [
        {"question_id": t.id, "step": step, "verifier": verifier}
        for t in samples
        for verifier in ("grounding", "judge")
        for step in (1, 2)
    ]
    written = []
    for size in (1 << 16, 3):
        monkeypatch.setattr(room, "QUESTIONS_A_PART", size)
        report = build(samples, keep="all", judged=told, grounding=0.1, judge=0.5)
        written.append(pq.read_table(report.folder / "step_scores"))
        assert report.dropped == {"unverified_judge": 1}
        row = json.loads((report.folder / "dropped.jsonl").read_text())
        assert (row["id"], row["error"].partition(" <")[0]) == ("q3", "step 2: judge 0.100")
    assert written[0].equals(written[1])
    assert written[0].drop_columns("score").to_pylist() == expected
    assert len(list((report.folder / "step_scores").iterdir())) == 2


def test_another_threshold_keeps_other_trajectories_of_the_same_shards(build):
    assert build([right(INVENTED)], grounding=0.9).kept == 0
    assert build([right(INVENTED)], grounding=0.4).kept == 1


def test_without_verifiers_no_scores_are_left_behind(build):
    folder = build([right(SUPPORTED)], grounding=0.9).folder
    assert (folder / "step_scores").exists()
    build([right(SUPPORTED)])
    assert not (folder / "step_scores").exists()


def test_of_several_samples_questions_and_trajectories_are_counted_apart(build):
    samples = [
        dataclasses.replace(trajectory(number, answer=answer), sample=sample)
        for number, answers in enumerate([("Bo", "Cem", "Cem"), ("Bo", "Bo", "Bo"), ("Cem", "Cem", "Bo")], 1)
        for sample, answer in enumerate(answers)
    ]
    report = build(samples)
    assert (report.questions, report.questions_kept, report.trajectories, report.kept) == (3, 2, 9, 2)
    assert report.dropped == {"spare": 2, "wrong_answer": 5}
    assert [t.id for t in read(report.folder)] == ["q1~1", "q3"]
    told = [json.loads(line) for line in (report.folder / "dropped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in told][:3] == ["q1", "q1~2", "q2"]
    assert report.summary().startswith("questions   3, kept 2\nchains      9, kept 2, dropped 7")


def test_a_trajectory_whose_scores_are_owed_is_not_kept_until_they_are_there(tmp_path):
    made = [right(trajectory(1)), right(trajectory(2))]
    told = [StepScore(t.id, step, "judge", 0.9) for t in made for step in (1, 2)]
    config = Config(run_dir=tmp_path, build={"verify": {"judge": 0.5}})
    found = rollout_set(tmp_path, made, judged=told[:2])
    assert found.missing() == [0]
    assert [(one.question, one.error) for one in found.owed()] == [
        ("q2", "the judge has not scored its steps")
    ]
    report = room.assemble(config, [found], run=1, skipped=0)
    assert (report.kept, report.dropped, report.owed) == (1, {"unscored": 1}, 1)
    found = rollout_set(tmp_path, made, judged=told)
    assert found.missing() == []
    report = room.assemble(config, [found], run=0, skipped=0)
    assert (report.kept, report.dropped, report.owed) == (2, {}, 0)
