"""Token files: made once from verified trajectories, found again, never read where they are not whole."""

import dataclasses
import json
import math
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distilled import assembled, trajectory
from scripted import CharTokenizer
from training_examples import gold_examples, tokens_of, trajectories_of, write_trajectories

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.core.files import file_sha256, write_table
from steper_ray.core.tokenizers import vocabulary_fingerprint
from steper_ray.data.examples import make_examples
from steper_ray.data.export import export
from steper_ray.frameworks import layouts
from steper_ray.prompts import PromptEncoder
from steper_ray.schema import EXAMPLE_SCHEMA, TRAJECTORY_SCHEMA, StopReason, TopLogprobs, to_row
from steper_ray.training import token_writer
from steper_ray.training import tokens as module
from steper_ray.training.alignment import NONE
from steper_ray.training.data import load_data
from steper_ray.training.sources import Source, data_fingerprint, sources_of
from steper_ray.training.token_writer import tokens_key, write_tokens
from steper_ray.training.tokenising import check_soft
from steper_ray.training.tokens import OpenTokens, Tokens, is_whole

TRAJECTORIES = trajectories_of(gold_examples(worlds=3, questions=5))


def items(tokens, **settings):
    return list(load_data(tokens, TrainConfig(row_tokens=10**6, **settings), 10**6).items)


def flip(path):
    """Flips one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("framework", sorted(layouts()))
@pytest.mark.parametrize("rows", [1024, 4])
def test_rows_hold_what_the_examples_of_each_trajectory_say(tmp_path, monkeypatch, framework, rows):
    monkeypatch.setattr(token_writer, "ROWS", rows)
    made = [dataclasses.replace(t, framework=framework) for t in TRAJECTORIES]
    found = items(tokens_of(write_trajectories(tmp_path / "kept.parquet", made), CharTokenizer()))
    encoder = PromptEncoder(CharTokenizer(), layouts()[framework])
    for item, source in zip(found, sorted(made, key=lambda t: t.id), strict=True):
        (tree,) = item.trees
        for branch, example in zip(tree.branches, make_examples(source), strict=True):
            shown = [passage for step in example.passages for passage in step]
            prompt = [*tree.trunk[: branch.cut], *branch.prompt]
            assert prompt == encoder.prompt(example.question, shown, ())
            assert list(branch.target) == encoder.target(example.chain)


def test_a_step_without_passages_or_words_adds_no_tokens(tmp_path):
    first, *rest = TRAJECTORIES[0].steps
    steps = (first, dataclasses.replace(rest[0], hits=(), reasoning=""), *rest[1:])
    path = write_trajectories(tmp_path / "a.parquet", [dataclasses.replace(TRAJECTORIES[0], steps=steps)])
    ((tree,),) = (item.trees for item in items(tokens_of(path, CharTokenizer())))
    assert tree.branches[0].cut == tree.branches[1].cut
    assert tree.branches[0].target == tree.branches[1].target


def test_the_same_trajectories_give_the_same_bytes_and_are_named_by_content(tmp_path):
    files = []
    for name in ("a", "b"):
        (source,) = sources_of(write_trajectories(tmp_path / f"{name}.parquet", TRAJECTORIES))
        files.append(tmp_path / f"{name}.arrow")
        write_tokens(source, files[-1], CharTokenizer())
        assert is_whole(files[-1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{n}.{e}" for n in "ab" for e in ("parquet", "arrow", "json")
    }


def test_another_tokenizer_makes_other_tokens():
    class Begin(CharTokenizer):
        bos_token_id = 1

    class Words(CharTokenizer):
        def get_vocab(self):
            return {"word": 7}

    keys = {tokens_key(tokenizer) for tokenizer in (CharTokenizer(), CharTokenizer(), Begin(), Words())}
    assert len(keys) == 3


def test_a_token_file_that_was_cut_or_changed_is_not_whole_and_is_never_read_in_silence(tmp_path):
    tokens = tokens_of(write_trajectories(tmp_path / "a.parquet", TRAJECTORIES), CharTokenizer())
    (file,) = tokens.files
    whole = file.read_bytes()
    flip(file)
    assert not is_whole(file)
    file.write_bytes(whole[:-8])
    assert not is_whole(file)
    with pytest.raises(
        TrainingError, match=rf"{file.name}: this file of tokens is missing or not whole. Delete it"
    ):
        OpenTokens(tokens)
    file.write_bytes(whole)
    os.utime(file, ns=(2, 2))
    assert is_whole(file)
    file.with_suffix(".json").write_text("{")
    assert not is_whole(file)


def test_a_bit_that_a_disk_flips_unseen_is_noticed_where_it_is_read(tmp_path, monkeypatch):
    tokens = tokens_of(write_trajectories(tmp_path / "a.parquet", TRAJECTORIES), CharTokenizer())
    (file,) = tokens.files
    assert is_whole(file)
    assert len(items(tokens)) == len(TRAJECTORIES)
    known = file_sha256(file)
    flip(file)
    monkeypatch.setattr(
        module, "file_fingerprint", lambda path: known
    )  # its times stay: it is not read again
    assert is_whole(file)
    named = rf"{file.name}: damaged at trajectory \S+ .its CRC-32 differs.*Delete it and train again"
    with pytest.raises(TrainingError, match=named):
        items(tokens)


def test_opening_reads_the_index_alone_and_takes_few_bytes_a_trajectory(tmp_path):
    path = write_trajectories(tmp_path / "a.parquet", TRAJECTORIES)
    tokens = tokens_of(path, CharTokenizer())
    before = pa.total_allocated_bytes()
    data = load_data(tokens, TrainConfig(row_tokens=10**6), 10**6)
    chunk, _ = data.tokens[0].place(0)
    for column in (chunk.trunk, chunk.chain, chunk.question):
        assert not column.values.flags.owndata
    assert pa.total_allocated_bytes() - before < 100 * len(data.items)


def kept(tmp_path, number=6):
    """A build's kept folder of several parts."""
    return assembled(tmp_path / "run", [trajectory(n) for n in range(1, number)]).folder / "kept"


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr("steper_ray.data.assemble.QUESTIONS_A_PART", 2)
    return sorted(kept(tmp_path).glob("*.parquet"))


def test_a_builds_files_are_what_its_manifest_says(parts):
    folder = parts[0].parent
    assert [source.path for source in sources_of(folder)] == parts
    assert sources_of(parts[1]) == sources_of(folder)[1:2]
    before = data_fingerprint(folder)
    flip(parts[1])
    for path in (folder, parts[1]):
        with pytest.raises(TrainingError, match=r"part-00001.parquet: not what the build wrote.*Build again"):
            sources_of(path)
    flip(parts[1])
    assert data_fingerprint(folder) == before
    parts[2].rename(folder / "part-00009.parquet")
    with pytest.raises(TrainingError, match=r"part-00009.parquet: not in .*manifest.json.*Build again"):
        sources_of(folder)
    (folder / "part-00009.parquet").unlink()
    with pytest.raises(TrainingError, match=r"part-00002.parquet: missing.*Build again"):
        sources_of(folder)


def test_the_shards_of_a_build_are_no_kept_trajectories(parts):
    shards = parts[0].parents[1] / "trajectories"
    with pytest.raises(TrainingError, match=r"Train on the build's `kept` folder"):
        sources_of(shards)


def test_bytes_that_changed_after_they_were_verified_are_noticed(parts, tmp_path):
    source = Source(parts[0], "0" * 64)
    with pytest.raises(TrainingError, match=r"part-00000.parquet: changed since the training began"):
        write_tokens(source, tmp_path / "a.arrow", CharTokenizer())
    assert not (tmp_path / "a.arrow").exists()


def test_an_exports_trajectories_are_learned_from_as_the_builds(parts, tmp_path):
    folder = parts[0].parent
    export(tmp_path / "run", tmp_path / "out")
    found = [
        items(tokens_of(path, CharTokenizer()))
        for path in (folder, tmp_path / "out" / "data" / "trajectories")
    ]
    assert found[0] == found[1]
    for flat in (tmp_path / "out", tmp_path / "out" / "data" / "examples"):
        with pytest.raises(TrainingError, match=r"holds flat examples.*Build again.*data/trajectories"):
            tokens_of(flat, CharTokenizer())


def one_file(path, change=lambda row: row, schema=TRAJECTORY_SCHEMA):
    write_table(path, pa.Table.from_pylist([change(to_row(t)) for t in TRAJECTORIES], schema=schema))
    return path


def test_what_is_no_file_of_kept_trajectories_is_named_with_the_fix(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 cut off")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    examples = [to_row(e) for t in TRAJECTORIES for e in make_examples(t)]
    write_table(tmp_path / "flat.parquet", pa.Table.from_pylist(examples, schema=EXAMPLE_SCHEMA))
    one_file(tmp_path / "reason.parquet", lambda row: row | {"stop_reason": "whim"})
    one_file(tmp_path / "null.parquet", lambda row: row | {"steps": None})
    for name, message in (
        ("broken", "not a readable Parquet file"),
        ("other", "no column 'question'"),
        ("flat", "holds flat examples; training reads trajectories. Build again"),
        ("reason", "a row does not fit the trajectory schema: 'whim'"),
        ("null", "a row does not fit the trajectory schema"),
    ):
        with pytest.raises(TrainingError, match=rf"{name}.parquet: {message}"):
            tokens_of(tmp_path / f"{name}.parquet", CharTokenizer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop_reason": StopReason.STEP_LIMIT}, "has no answer .step_limit.*Train on the build's data/kept"),
        ({"framework": "tarot"}, "unknown framework 'tarot'"),
        (
            {"steps": tuple(dataclasses.replace(s, taken_back="So") for s in TRAJECTORIES[0].steps)},
            "took back what it wrote.*reasoning.stop=fixed",
        ),
    ],
)
def test_a_trajectory_that_teaches_nothing_is_refused_by_name(tmp_path, change, message):
    path = write_trajectories(tmp_path / "a.parquet", [dataclasses.replace(TRAJECTORIES[0], **change)])
    with pytest.raises(TrainingError, match=rf"a.parquet: trajectory {TRAJECTORIES[0].id}:? .*{message}"):
        tokens_of(path, CharTokenizer())


def test_a_note_says_how_high_the_ids_are(tmp_path):
    tokens = tokens_of(write_trajectories(tmp_path / "a.parquet", TRAJECTORIES), CharTokenizer())
    note = json.loads(tokens.files[0].with_suffix(".json").read_text())
    trees = [tree for item in items(tokens) for tree in item.trees]
    assert note["rows"] == len(trees)
    pieces = [ids for t in trees for ids in (t.trunk, *(p for b in t.branches for p in (b.prompt, b.target)))]
    assert note["highest"] == max(max(piece) for piece in pieces)
    assert OpenTokens(Tokens(tmp_path, tokens.files)).highest == note["highest"]


BUILD = {"soft_targets": {"teacher": "build"}}


def spoken(trajectory, written=None, vocabulary=None, value=-0.5, second=1):
    """A trajectory whose teacher has written " " and each step's words, or `written`, with two tokens at each."""
    steps = []
    for step in trajectory.steps:
        ids = tuple(map(ord, written or f" {step.reasoning}"))
        both = tuple(one for token in ids for one in (token, second))
        told = vocabulary or vocabulary_fingerprint(CharTokenizer())
        top = TopLogprobs(told, ids, both, (value, -2.0) * len(ids))
        steps.append(dataclasses.replace(step, top_logprobs=top))
    return dataclasses.replace(trajectory, steps=tuple(steps))


def test_a_steps_own_words_have_what_the_teacher_said_and_what_it_repeats_has_nothing(tmp_path):
    source = write_trajectories(tmp_path / "a.parquet", [spoken(t) for t in TRAJECTORIES])
    tokens = tokens_of(source, CharTokenizer())
    for item in items(tokens, **BUILD):
        before = 0
        for branch in item.trees[0].branches:
            start, ids, logprobs = branch.said
            assert (start, start + len(ids) + 1) == (before, len(branch.target))  # all but the end
            assert ids[:, 0].tolist() == list(branch.target[start:-1])
            assert (set(ids[:, 1].tolist()), set(logprobs.ravel().tolist())) == ({1}, {-0.5, -2.0})
            before = start + len(ids)
    assert all(b.said is None for item in items(tokens) for b in item.trees[0].branches)
    check_soft(tokens, "student")


def test_where_the_students_tokens_part_from_the_teachers_the_rest_of_the_step_has_nothing(tmp_path, caplog):
    trajectory = TRAJECTORIES[0]
    said = trajectory.steps[0].reasoning
    other = spoken(trajectory, f" {said[:4]}~{said[5:]}", second=200)
    tokens = tokens_of(write_trajectories(tmp_path / "a.parquet", [other]), CharTokenizer())
    first = items(tokens, **BUILD)[0].trees[0].branches[0].said
    assert [one != NONE for one in first.ids[:, 0].tolist()] == [True] * 5 + [False] * (len(first.ids) - 5)
    assert set(first.ids[:, 1].tolist()) == {NONE}  # the vocabulary has no token 200
    check_soft(tokens, "student")
    assert "tokens of the chains have soft targets" in caplog.text


def test_another_tokenizers_words_none_at_all_and_what_is_no_number_are_named(tmp_path):
    for name, made in (("none", TRAJECTORIES[0]), ("other", spoken(TRAJECTORIES[0], vocabulary="x"))):
        tokens = tokens_of(write_trajectories(tmp_path / f"{name}.parquet", [made]), CharTokenizer())
        with pytest.raises(
            TrainingError, match=rf"{name}.*no trajectory has log-probabilities.*build\.logits"
        ):
            check_soft(tokens, "student")
    broken = write_trajectories(tmp_path / "nan.parquet", [spoken(TRAJECTORIES[0], value=math.nan)])
    with pytest.raises(TrainingError, match=rf"nan.*trajectory {TRAJECTORIES[0].id}: .*no number"):
        tokens_of(broken, CharTokenizer())
