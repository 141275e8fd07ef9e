"""Config files as people write them: paths as in a shell, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from steper_ray.config.file import ConfigError, load_config


def test_paths_and_models_are_read_as_a_shell_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/data")
    config = load_config(None, ["run_dir=~/x", "engine.model=$DATA/teacher", "train.student=${DATA}/student"])
    assert config.run_dir == tmp_path / "x"
    assert (config.engine.model, config.train.student) == ("/data/teacher", "/data/student")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("run_dir=$STEPER_UNSET/x", r"run_dir: the environment variable \$STEPER_UNSET is not set"),
        ("run_dir=~nobody-of-this-name/x", "no such user"),
        ("engine.model=${STEPER_UNSET}", "engine.model: the environment variable"),
        ("train.lr=.inf", "train.lr: .*finite number"),
        ("train.lr=.nan", "train.lr"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_field(override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"train:\n  lr: 1.0e-4\n  lr: 1.0e-5\n", "'lr' comes twice, first in line 2: keep one"),
        (b"run_dir: caf\xe9\n", "not UTF-8"),
        (b"- a list\n", "mapping of sections"),
    ],
)
def test_a_file_that_is_no_config_is_one_error_that_names_it(
    tmp_path: Path, text: bytes, reason: str
) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_a_date_is_the_name_it_was_written_as() -> None:
    assert load_config(None, ["run_dir=2026-11-26"]).run_dir == Path("2026-11-26")


def test_a_merged_section_may_repeat_a_key(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("engine: &base\n  model: a\nself_distil:\n  engine:\n    <<: *base\n    model: b\n")
    config = load_config(path)
    assert config.self_distil.engine is not None
    assert (config.engine.model, config.self_distil.engine.model) == ("a", "b")
