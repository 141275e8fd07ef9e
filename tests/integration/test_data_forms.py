"""What the single-step baselines learn from, made of a build on real Ray."""

import pyarrow.parquet as pq
import pytest

from steper_ray import stages
from steper_ray.config.file import load_config
from steper_ray.core.errors import DataError
from steper_ray.data.single_step import make_form
from steper_ray.schema import trajectory_from_row

pytestmark = pytest.mark.usefixtures("ray_cluster")


def config(run_dir, *overrides):
    settings = (
        "corpus.miniature.worlds=2",
        "build.teacher=annotation",
        "train.method=vanilla_kd",
        "train.form=kard",
    )
    return load_config(None, [f"run_dir={run_dir}", *settings, *overrides])


def trajectories(folder):
    return [trajectory_from_row(row) for row in pq.read_table(folder).to_pylist()]


def test_a_form_is_made_once_and_again_where_its_build_or_its_files_differ(tmp_path):
    run = config(tmp_path)
    with pytest.raises(DataError, match="no finished build here: run the build stage first"):
        make_form(run)
    stages.build(run)
    folder = make_form(run)
    assert folder == stages.trajectories_folder(run).resolve()
    made, kept = trajectories(folder), trajectories(tmp_path / "data" / "kept")
    assert [(t.id, t.question, t.answer) for t in made] == [(t.id, t.question, t.answer) for t in kept]
    assert {(len(t.steps), len(t.passages)) for t in made} == {(1, run.reasoning.k)}
    (file,) = folder.glob("*.parquet")
    before, content = file.stat().st_mtime_ns, file.read_bytes()
    make_form(run)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(content[:-1])
    make_form(run)
    assert file.read_bytes() == content
    stages.build(fewer := config(tmp_path, "corpus.limit=8"))
    make_form(fewer)
    assert len(trajectories(folder)) == 8
