"""Token files made by Ray tasks: what is missing or damaged alone is made, by whichever training comes first."""

import pytest
from training_examples import gold_examples, trajectories_of, write_trajectories
from transformers import AutoTokenizer

from steper_ray.config import TrainConfig
from steper_ray.core.errors import ModelError, TrainingError
from steper_ray.models import resolve_model
from steper_ray.training import tokenising
from steper_ray.training.data import load_data
from steper_ray.training.job import make_task
from steper_ray.training.tokenising import tokenise, with_tokens
from steper_ray.training.trainer import TrainJob

BASE = resolve_model("miniature:base")
TRAJECTORIES = trajectories_of(gold_examples(worlds=3, questions=5))


@pytest.fixture
def kept(ray_cluster, tmp_path):
    for number in range(3):
        write_trajectories(
            tmp_path / "kept" / f"part-{number}.parquet", TRAJECTORIES[5 * number : 5 * number + 5]
        )
    return tmp_path / "kept"


def made(tokens):
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tokens.files}


def test_only_what_is_missing_or_damaged_is_made_and_a_rerun_asks_no_ray(kept, tmp_path, monkeypatch, caplog):
    tokens = tokenise(kept, BASE, tmp_path, progress=False)
    before = made(tokens)
    assert len(load_data(tokens, TrainConfig(), 2048).items) == len(TRAJECTORIES)
    damaged, missing, whole = tokens.files
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    missing.unlink()
    (damaged.parent / ".writing-killed").write_text("half a file")
    assert tokenise(kept, BASE, tmp_path, progress=False) == tokens
    after = made(tokens)
    assert {file: content for file, (_, content) in after.items()} == {f: c for f, (_, c) in before.items()}
    assert [before[file][0] == after[file][0] for file in (damaged, missing, whole)] == [False, False, True]
    assert f"{damaged}: damaged" in caplog.text
    assert {p.suffix for p in damaged.parent.iterdir() if p.name != ".locks"} == {".arrow", ".json"}
    monkeypatch.setattr(tokenising, "in_order", None)
    assert tokenise(kept, BASE, tmp_path, progress=False) == tokens


def test_jobs_of_one_run_share_their_token_files_and_held_out_ones_are_others(kept, tmp_path):
    held_out = write_trajectories(tmp_path / "other.parquet", trajectories_of(gold_examples(1, 3, seed=9)))
    jobs = [
        TrainJob("a", TrainConfig(), kept, tmp_path / "a"),
        TrainJob("b", TrainConfig(validation={"trajectories": held_out}), kept, tmp_path / "b"),
    ]
    one, two = with_tokens([make_task(job, tmp_path) for job in jobs], tmp_path, progress=False)
    assert one.tokens == two.tokens
    assert one.held_out is None
    assert (two.held_out.source, len(two.held_out.files)) == (held_out, 1)
    assert len(list((tmp_path / "training" / "tokens").rglob("*.arrow"))) == 4


def test_a_file_that_cannot_be_tokenised_stops_before_any_worker_and_keeps_the_others(kept, tmp_path):
    first = write_trajectories(kept / "part-0.parquet", TRAJECTORIES[:1])
    first.write_bytes(b"PAR1 cut off")
    with pytest.raises(TrainingError, match=r"part-0.parquet: not a readable Parquet file"):
        tokenise(kept, BASE, tmp_path, progress=False)


def test_a_tokenizer_that_cannot_be_loaded_or_ends_no_sequence_is_refused(kept, tmp_path):
    with pytest.raises(ModelError, match="nowhere': its tokenizer cannot be loaded"):
        tokenise(kept, str(tmp_path / "nowhere"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(TrainingError, match=r"has no end-of-sequence token.*`eos_token`"):
        tokenise(kept, str(tmp_path / "endless"), tmp_path)
