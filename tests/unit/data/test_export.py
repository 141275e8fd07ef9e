"""`steper export`: the data set as others read it, with the real `datasets` library, offline."""

import dataclasses
import json

import pyarrow.parquet as pq
import pytest
import yaml
from distilled import assembled, trajectory, with_usage
from typer.testing import CliRunner

from steper_ray.cli.main import app
from steper_ray.config import Config
from steper_ray.core.errors import DataError
from steper_ray.data import export as room
from steper_ray.data.export import SCHEMAS, export, split_of
from steper_ray.data.export_card import FIELDS
from steper_ray.data.portable import portable
from steper_ray.data.seal import seal
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.schema import EXAMPLE_SCHEMA, TRAJECTORY_SCHEMA, example_from_row, to_row, trajectory_from_row

TRAJECTORIES = [with_usage(trajectory(n, answer="Bo" if n == 2 else "Cem")) for n in range(1, 13)]


@pytest.fixture
def run_dir(tmp_path):
    assembled(tmp_path / "run", TRAJECTORIES)
    return tmp_path / "run"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))  # before the import: it is read there
    import datasets

    datasets.disable_progress_bars()
    return lambda *args: datasets.load_dataset(*args, cache_dir=str(tmp_path / "cache"))


def rows_of(out, config, split="train"):
    files = sorted((out / "data" / config).glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_both_configs_open_with_the_datasets_library_as_they_lie(run_dir, tmp_path, load):
    export(run_dir, tmp_path / "out", validation=0.3)
    examples = load(str(tmp_path / "out"))
    assert set(examples) == {"train", "validation"}
    assert examples["train"].column_names == SCHEMAS["examples"].names
    assert examples.num_rows == {"train": 2 * 8, "validation": 2 * 3}
    first = examples["train"][0]
    assert (first["id"], first["ability"], first["passages"][0][0]["title"]) == (
        "q1#1",
        "initialization",
        "T1",
    )
    trajectories = load(str(tmp_path / "out"), "trajectories")
    assert trajectories.num_rows == {"train": 8, "validation": 3}
    assert trajectories["train"].column_names == SCHEMAS["trajectories"].names
    assert trajectories["train"][0]["steps"][1]["usage"]["cached_tokens"] == 150


def test_files_alone_open_without_the_card(run_dir, tmp_path, load):
    export(run_dir, tmp_path / "out")
    read = load("parquet", None, None, str(tmp_path / "out" / "data" / "examples" / "*.parquet"))
    assert read["train"].num_rows == 22


def test_prompt_and_completion_are_the_layouts_text_at_each_step(run_dir, tmp_path):
    export(run_dir, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "examples")
    assert rows[1]["prompt"] == "Title: T1\ntext 1\n\nTitle: T2\ntext 2\n\nQ: Question 1?\nA:"
    assert rows[1]["completion"] == " Al is Bo. So the answer is: Cem."
    for row in rows:
        example = example_from_row({name: row[name] for name in EXAMPLE_SCHEMA.names})
        passages = [p for step in example.passages for p in step]
        assert row["prompt"] + row["completion"] == FRAMEWORKS["ircot"].layout.text(
            example.question, passages, example.chain
        )


def test_trajectories_are_those_that_were_kept_with_every_column(run_dir, tmp_path):
    export(run_dir, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "trajectories")
    kept = [t for t in TRAJECTORIES if t.question.id != "q2"]
    assert [{"id": t.id, **to_row(t)} for t in kept] == rows
    assert trajectory_from_row({name: rows[0][name] for name in TRAJECTORY_SCHEMA.names}) == kept[0]


def test_a_question_and_its_samples_are_never_in_two_splits(tmp_path):
    samples = [
        dataclasses.replace(
            trajectory(number, pieces=[f"{sample}.", "So the answer is: Cem."]), sample=sample
        )
        for number in range(1, 41)
        for sample in range(3)
    ]
    assembled(tmp_path / "run", samples, keep="all")
    report = export(tmp_path / "run", tmp_path / "out", validation=0.25)
    seen = {}
    for config, key in (("trajectories", "id"), ("examples", "question_id")):
        for split in ("train", "validation"):
            rows = rows_of(tmp_path / "out", config, split)
            seen[config, split] = {row[key].partition("~")[0] for row in rows}
            assert all(split_of(question, 0.25) == split for question in seen[config, split])
    assert seen["examples", "train"] == seen["trajectories", "train"]
    assert report.questions == {s: len(seen["examples", s]) for s in ("train", "validation")}
    assert sum(report.questions.values()) == 40
    assert report.rows["trajectories"]["train"] == 3 * report.questions["train"]


def test_the_share_that_is_held_out_is_about_what_was_asked_for():
    held = sum(split_of(f"q{n}", 0.05) == "validation" for n in range(20_000))
    assert 900 < held < 1100
    assert split_of("q1", 0) == "train"


def test_long_data_is_cut_into_numbered_files_with_nothing_lost(run_dir, tmp_path, monkeypatch):
    export(run_dir, tmp_path / "one")
    monkeypatch.setattr(room, "ROWS_A_GROUP", 3)
    monkeypatch.setattr(room, "FILE_BYTES", 1)
    export(run_dir, tmp_path / "many")
    names = sorted(p.name for p in (tmp_path / "many" / "data" / "examples").iterdir())
    assert names == [f"train-{n:05}-of-00008.parquet" for n in range(8)]  # 22 rows
    for config in SCHEMAS:
        assert rows_of(tmp_path / "many", config) == rows_of(tmp_path / "one", config)


def test_the_same_run_gives_the_same_bytes_and_takes_the_place_of_an_earlier_export(run_dir, tmp_path):
    out = tmp_path / "deep" / "out"
    export(run_dir, out, validation=0.3)
    export(run_dir, out)
    before = files_of(out)
    assert not any("validation" in name for name in before)
    export(run_dir, out)
    assert files_of(out) == before
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_what_is_no_export_is_not_touched(run_dir, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    for taken in (tmp_path / "mine", run_dir):
        before = files_of(taken)
        with pytest.raises(DataError, match="exists and is no export"):
            export(run_dir, taken)
        assert files_of(taken) == before


def test_a_data_set_of_two_builds_is_refused_and_an_earlier_export_stays(run_dir, tmp_path):
    export(run_dir, tmp_path / "out")
    before = files_of(tmp_path / "out")
    (part,) = (run_dir / "data" / "kept").glob("*.parquet")
    whole = part.read_bytes()
    pq.write_table(pq.read_table(part), part, compression="none")
    with pytest.raises(DataError, match=r"part-00000.parquet: changed since it was written.*Build again"):
        export(run_dir, tmp_path / "out")
    part.write_bytes(whole)
    dropped = run_dir / "data" / "dropped.jsonl"
    dropped.write_text("")
    with pytest.raises(DataError, match=r"dropped\.jsonl: changed since it was written.*Build again"):
        export(run_dir, tmp_path / "out")
    assert files_of(tmp_path / "out") == before
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out"}


def test_a_split_that_would_be_empty_is_an_error_with_the_fix(run_dir, tmp_path):
    with pytest.raises(DataError, match="split 'validation': choose another --validation"):
        export(run_dir, tmp_path / "out", validation=1e-9)
    with pytest.raises(DataError, match=r"--validation 1\.0: a share"):
        export(run_dir, tmp_path / "out", validation=1.0)
    assembled(run_dir, TRAJECTORIES[1:2])
    with pytest.raises(DataError, match="nothing was kept"):
        export(run_dir, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def card_of(out):
    _, header, body = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_names_the_files_and_tells_what_the_manifest_holds(run_dir, tmp_path):
    assembled(run_dir, TRAJECTORIES, confidence=0.5)
    export(run_dir, tmp_path / "out", validation=0.3)
    header, body = card_of(tmp_path / "out")
    assert header["size_categories"] == ["n<1K"]
    assert [c["config_name"] for c in header["configs"]] == ["examples", "trajectories"]
    for config in header["configs"]:
        for files in config["data_files"]:
            assert list((tmp_path / "out").glob(files["path"]))
    assert "| train | 8 | 16 | 8 |" in body
    assert "| dropped: wrong answer | 1 | 8.3% |" in body
    assert "| teacher | `test`, 12 trajectories, 11 kept |" in body
    assert "| verifier confidence | every step at least 0.5; 0 of 11 right trajectories are below |" in body
    assert "| initialization | 11 | 1 | 5 | 3 |\n| expansion | 0 | | | |\n| aggregation | 11 | 2 |" in body
    assert "Recall@4, the mean share" in body
    assert "24 generations: 3,600 tokens read, of which\n50.0% came" in body
    manifest = json.loads((run_dir / "data" / "manifest.json").read_text())
    assert manifest["code"] in body
    settings = yaml.safe_load(body[body.index("    corpus:\n") :])
    told = Config.model_validate(settings)
    assert told.model_dump(include={"reasoning", "build"}) == Config(
        build={"verify": {"confidence": 0.5}}
    ).model_dump(include={"reasoning", "build"})


def test_every_column_is_explained():
    assert {config: list(fields) for config, fields in FIELDS.items()} == {
        config: schema.names for config, schema in SCHEMAS.items()
    }


def test_no_key_no_address_and_no_absolute_path_leaves_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    data = [dataclasses.replace(t, source="/home/someone/models/big") for t in TRAJECTORIES]
    run_dir = tmp_path / "run"
    assembled(run_dir, data)
    path = run_dir / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    config = manifest["config"]
    config["engine"] |= {"kind": "openai", "model": "big", "url": "http://user:pass@inner-host:8000/v1"}
    config["corpus"] |= {"kind": "plain", "questions": "/home/someone/q.jsonl", "passages": "data/p.jsonl"}
    config["reasoning"]["demonstrations"] = "../someone/shots.txt"
    manifest["teachers"][0]["identity"]["engine"] = {
        "model": "/home/someone/models/big",
        "url": "http://inner-host",
    }
    path.write_text(json.dumps(manifest))
    seal(run_dir / "data", "", {})
    export(run_dir, tmp_path / "out")
    for name, content in files_of(tmp_path / "out").items():
        for private in (b"someone", b"inner-host", b"pass@", b"very-secret", str(tmp_path).encode()):
            assert private not in content, name
    assert {row["source"] for row in rows_of(tmp_path / "out", "trajectories")} == {"big"}
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert (told["corpus"]["questions"], told["corpus"]["passages"]) == ("q.jsonl", "data/p.jsonl")
    assert told["engine"]["api_key_env"] == "OPENAI_API_KEY"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("miniature:teacher", "miniature:teacher"),
        ("/a/b/", "b"),
        ("~/models/x", "x"),
        ("C:\\data\\q.jsonl", "q.jsonl"),
        ("a/../../b", "b"),
        ("https://host/v1", "<url>"),
        ({"a": ["/x/y", 1, None]}, {"a": ["y", 1, None]}),
    ],
)
def test_what_holds_on_one_machine_alone_is_cut(given, told):
    assert portable(given) == told


def test_the_command_tells_what_it_wrote(run_dir, tmp_path):
    run = CliRunner().invoke(app, ["export", str(run_dir), str(tmp_path / "out"), "--validation", "0.3"])
    assert run.exit_code == 0
    assert run.stdout.splitlines()[:2] == [
        "train       8 questions, 16 examples, 8 trajectories",
        "validation  3 questions, 6 examples, 3 trajectories",
    ]
