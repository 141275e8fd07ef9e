"""Rounds of self-distillation on real engines: what joins the data, what is asked again, and what a rerun repeats."""

import json

import pytest

from steper_ray.config.file import load_config
from steper_ray.core.errors import DataError
from steper_ray.recipes.self_distillation import format_rounds, self_distil
from steper_ray.rollouts.shards import ShardStore

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL = [
    "corpus.miniature.worlds=2",
    "corpus.miniature.questions_per_world=6",
    "build.shard_size=4",
    "train.epochs=1",
    "evaluate.corpus.miniature.worlds=1",
    "evaluate.corpus.miniature.questions_per_world=2",
    "evaluate.units=[sentence]",
    "sampling.max_tokens=32",
]


def config_of(run_dir, *more):
    return load_config("jobs/configs/miniature.yaml", [*SMALL, f"run_dir={run_dir}", *more])


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """Two rounds from a student that is as good as the teacher; what it teaches in 12 questions wins none."""
    config = config_of(
        tmp_path_factory.mktemp("rounds"), "self_distil.student=miniature:teacher", "self_distil.rounds=2"
    )
    return config, self_distil(config)


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}


def test_a_students_own_right_trajectories_are_what_the_next_student_learns_from(distilled):
    config, rounds = distilled
    manifest = json.loads((config.run_dir / "rounds" / "1" / "data" / "manifest.json").read_text())
    assert [row.number for row in rounds] == [0, 1]
    assert rounds[1].trajectories == 12
    assert 0 < rounds[1].won == rounds[1].kept <= 12
    assert sum(manifest["counts"]["examples"].values()) == rounds[1].examples
    record = json.loads((config.run_dir / "rounds" / "1" / "models" / "steper" / "steper.json").read_text())
    assert record["student"] == "miniature:base"
    assert record["trajectories"]["manifest"]["counts"] == manifest["counts"]


def test_a_later_round_asks_only_what_no_student_has_got_right_and_ends_where_it_wins_nothing(distilled):
    config, rounds = distilled
    first, second = (config.run_dir / "rounds" / str(n) / "data" / "trajectories" for n in (1, 2))
    added = set(files(second)) - set(files(first))
    asked = [
        t.question.id
        for name in added
        if name.endswith("parquet")
        for t in ShardStore(second, "").read(name.removeprefix("shard-").removesuffix(".parquet"))
    ]
    assert len(asked) == len(set(asked)) == 12 - rounds[1].kept
    # To the byte, with their times: taken over, and not asked for again.
    assert all((second / name).read_bytes() == (first / name).read_bytes() for name in files(first))
    assert not (config.run_dir / "rounds" / "2" / "models").exists()


def test_every_student_is_scored_and_the_table_shows_it(distilled):
    config, rounds = distilled
    written = json.loads((config.run_dir / "rounds" / "rounds.json").read_text())
    assert [row["scores"] for row in written] == [row.scores for row in rounds]
    assert all(0 <= row.scores["sentence"]["em"] <= 1 for row in rounds)
    assert len(format_rounds(rounds).splitlines()) == 3


def test_a_rerun_repeats_neither_rollouts_nor_trainings_nor_scores(distilled):
    config, rounds = distilled
    folders = [config.run_dir / "rounds" / str(n) / "data" / "trajectories" for n in (1, 2)]
    student = config.run_dir / "rounds" / "1" / "models" / "steper" / "model.safetensors"
    before = [files(folder) for folder in folders], student.stat().st_mtime_ns
    assert self_distil(config) == rounds
    assert ([files(folder) for folder in folders], student.stat().st_mtime_ns) == before


def test_a_first_student_that_gets_nothing_right_is_said_to_teach_nothing(tmp_path):
    config = config_of(tmp_path, "self_distil.student=miniature:base", "corpus.limit=2")
    with pytest.raises(DataError, match=r"no question right.*dropped\.md"):
        self_distil(config)


def test_a_missing_first_student_is_named(tmp_path):
    with pytest.raises(DataError, match=r"models/steper: no student here.*self_distil\.student"):
        self_distil(config_of(tmp_path))
