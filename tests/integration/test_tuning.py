"""Successive halving over settings, on a real engine: who goes on, what is asked once, and what comes out."""

import json

import pytest
import yaml

from steper_ray.config.file import ConfigError, load_config
from steper_ray.core.errors import DataError
from steper_ray.recipes.tuning import OWN, _as_yaml, tune

pytestmark = pytest.mark.usefixtures("ray_cluster")


def config_of(run_dir, *more):
    """The miniature's teacher with one step alone, which answers next to nothing."""
    corpus = "tune.corpus={kind: miniature, miniature: {worlds: 1, questions_per_world: 8, split: test}}"
    settings = "tune.settings={reasoning.max_steps: [1, 6], reasoning.k: [4]}"
    own = ("reasoning.max_steps=1", "reasoning.stop=fixed", "sampling.max_tokens=32", "evaluate.engines=1")
    rounds = ("tune.first=2", "tune.questions=8", "tune.keep=0.5")
    return load_config(None, [f"run_dir={run_dir}", corpus, settings, *own, *rounds, *more])


def test_the_best_settings_win_and_nothing_is_asked_twice(tmp_path):
    found = tune(config_of(tmp_path))
    sizes = [(len(tried), tried[0].questions) for tried in found.rounds]
    assert sizes == [(3, 2), (2, 4), (2, 8)]
    names = {one.candidate for one in found.rounds[-1]}
    assert names == {OWN, "reasoning.max_steps=6, reasoning.k=4"}
    assert found.winner == ("reasoning.max_steps=6", "reasoning.k=4")
    assert found.comparison.difference > 0.5
    assert found.comparison.n == 8
    assert "chosen on these questions" in found.summary()
    written = yaml.safe_load((tmp_path / "tune" / "tuned.yaml").read_text())
    assert written == {"reasoning": {"max_steps": 6, "k": 4}}
    assert json.loads((tmp_path / "tune" / "tuned.json").read_text())["winner"] == list(found.winner)
    shards = list((tmp_path / "tune" / "eval").glob("*max_steps_6*/**/*.parquet"))
    assert len(shards) == 4  # of two questions each: a later round adds to those before


def test_what_cannot_be_tuned_is_said(tmp_path):
    with pytest.raises(DataError, match=r"nothing to tune: set tune\.settings"):
        tune(config_of(tmp_path, "tune.settings={}"))
    with pytest.raises(DataError, match=r"no question is held out.*set tune\.corpus"):
        tune(config_of(tmp_path, "tune.corpus=null"))
    with pytest.raises(ConfigError, match=r"reasoning\.max_steps=0.*greater than or equal to 1"):
        tune(config_of(tmp_path, "tune.settings={reasoning.max_steps: [0]}"))


def test_a_nested_setting_is_written_as_the_config_reads_it():
    written = _as_yaml(("retrieval.fusion.dense=0.3", 'reasoning.unit="chain"'))
    assert yaml.safe_load(written) == {
        "retrieval": {"fusion": {"dense": 0.3}},
        "reasoning": {"unit": "chain"},
    }
