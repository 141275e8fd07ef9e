"""The build on real Ray Data, with the annotation teacher and with a real engine on a tiny model."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from training_examples import tokens_of

from steper_ray import stages
from steper_ray.config import TrainConfig
from steper_ray.config.file import load_config
from steper_ray.core.errors import DataError, EngineDeadError, ModelError, NothingKeptError, SteperError
from steper_ray.corpora.miniature import make_corpus
from steper_ray.data.build import build_data
from steper_ray.data.filtering import drop_reason
from steper_ray.data.inspection import DataSet
from steper_ray.models import ASSETS, resolve_model
from steper_ray.pretrained import load_model, load_tokenizer
from steper_ray.rollouts import run
from steper_ray.rollouts.actor import RolloutActor
from steper_ray.rollouts.deaths import BARREN
from steper_ray.schema import (
    Passage,
    Question,
    StopReason,
    to_row,
    trajectory_from_row,
)
from steper_ray.training.data import load_data
from steper_ray.training.forward import Forward
from steper_ray.training.packing import pack
from steper_ray.training.tokenising import check_soft

pytestmark = pytest.mark.usefixtures("ray_cluster")

PASSAGES, QUESTIONS = make_corpus(5, 2, 10, "train")


@pytest.fixture
def configure(tmp_path):
    """A config over the miniature questions and any further ones, in a run_dir of its own."""

    def make(*overrides, more=()):
        for name, values in (("passages", PASSAGES), ("questions", [*QUESTIONS, *more])):
            lines = "".join(json.dumps(to_row(value)) + "\n" for value in values)
            (tmp_path / f"{name}.jsonl").write_text(lines)
        files = [f"corpus.{name}={tmp_path / name}.jsonl" for name in ("passages", "questions")]
        defaults = [f"run_dir={tmp_path / 'run'}", "corpus.kind=plain", "build.shard_size=4"]
        return load_config(None, [*defaults, *files, *overrides])

    return make


ANNOTATION = "build.teacher=annotation"
# Small enough for seconds: two steps of a few words each.
ENGINE = ("reasoning.max_steps=2", "sampling.max_tokens=12", "build.in_flight=6", "build.match=contains")


def trajectories(report):
    """In input order, as the manifest lists the shards."""
    (teacher,) = json.loads((report.folder / "manifest.json").read_text())["teachers"]
    ids = teacher["shards"]
    files = [report.folder / "trajectories" / f"shard-{key}.parquet" for key in ids]
    return [trajectory_from_row(row) for file in files for row in pq.read_table(file).to_pylist()]


def made_by(report):
    """Teacher -> the ids of its trajectories, in the order of the questions."""
    found = {}
    for seen in DataSet(report.folder.parent):
        found.setdefault(seen.trajectory.source, []).append(seen.trajectory.id)
    return found


def kept_bytes(report):
    return [p.read_bytes() for p in sorted((report.folder / "kept").glob("*.parquet"))]


def shard_files(report):
    return sorted((report.folder / "trajectories").glob("shard-*.parquet"))


def drop_shard(report):
    file = shard_files(report)[2]
    file.unlink()
    return file


def test_the_annotation_teacher_gives_every_question_its_trajectory_once(configure):
    report = build_data(configure(ANNOTATION))
    assert (report.questions, report.kept, report.shards_run) == (20, 20, 5)
    assert report.passages == ""
    assert [t.question for t in trajectories(report)] == QUESTIONS
    kept = [trajectory_from_row(row) for row in pq.read_table(report.folder / "kept").to_pylist()]
    assert [(t.id, len(t.steps)) for t in kept] == [(q.id, len(q.decomposition) + 1) for q in QUESTIONS]
    assert len(report.recall) == 5
    assert list(report.recall) == sorted(report.recall)
    assert report.recall[-1] > 0.5
    annotation = json.loads((report.folder / "manifest.json").read_text())["annotation"]
    facts = sum(len(q.decomposition) for q in QUESTIONS)
    assert (annotation["facts"], annotation["supported"]) == (facts, 1.0)
    assert annotation["injected"] == sum(step.injected is not None for t in kept for step in t.steps)
    assert f"100.0% of {facts} facts have their passage in the prompt" in report.summary()


def test_a_rerun_makes_nothing_and_a_lost_shard_alone_is_made_again(configure):
    config = configure(ANNOTATION)
    first = build_data(config)
    before, files = kept_bytes(first), {p: p.stat().st_mtime_ns for p in shard_files(first)}
    again = build_data(config)
    assert again.shards_run == 0
    assert {p: p.stat().st_mtime_ns for p in shard_files(again)} == files
    lost = drop_shard(again)
    mended = build_data(config)
    assert mended.shards_run == 1
    assert {p for p in files if p.stat().st_mtime_ns != files[p]} == {lost}
    assert kept_bytes(again) == kept_bytes(mended) == before


def test_a_build_whose_filters_refuse_everything_is_an_error_that_says_what_they_refused(configure):
    with pytest.raises(NothingKeptError, match=r"none of 2 trajectories is kept \(\w+ 2\)") as caught:
        stages.build(configure(ANNOTATION, "reasoning.max_steps=1", "corpus.limit=2"))
    assert "questions   2, kept 0" in caught.value.report


def test_other_rules_for_long_passages_are_other_trajectories_and_the_report_counts_them(configure):
    build_data(configure(ANNOTATION))
    short = ("reasoning.max_passage_chars=150", "reasoning.long_passages=leave_out")
    report = build_data(configure(ANNOTATION, *short))
    assert report.shards_run == 5
    assert "reasoning.max_passage_chars) and are left out; the longest, '" in report.summary()
    found = [hit.passage for t in trajectories(report) for step in t.steps for hit in step.hits]
    assert 0 < max(len(passage.title) + len(passage.text) for passage in found) <= 150


def test_samples_of_a_question_differ_are_the_same_in_another_run_and_any_choice_of_them_is_free(configure):
    sampled = (*ENGINE, "corpus.limit=6", "build.ask=all", "build.samples=3", "sampling.temperature=6")
    report = build_data(configure(*sampled, "build.keep=all"))
    found = trajectories(report)
    assert [(t.question, t.sample) for t in found] == [(q, n) for q in QUESTIONS[:6] for n in range(3)]
    assert any(len({t.chain for t in found[at : at + 3]}) > 1 for at in range(0, 18, 3))
    # At this temperature every sentence is doubted, but a build takes none back, whatever answers questions.
    assert not any(step.taken_back for t in found for step in t.steps)
    assert (report.questions, report.trajectories) == (6, 18)
    for file in shard_files(report):
        file.unlink()
    again = build_data(configure(*sampled, "build.keep=majority"))
    assert again.shards_run == 2
    assert [t.chain for t in trajectories(again)] == [t.chain for t in found]
    assert build_data(configure(*sampled, "build.keep=first")).shards_run == 0


def test_what_the_teacher_would_have_written_is_what_a_training_computes_at_every_token_of_the_chain(
    configure,
):
    """The stored log-probabilities are those of the teacher over the step trees that its student learns from."""
    report = build_data(
        configure("corpus.limit=6", "build.logits=4", "sampling.max_tokens=48", "build.in_flight=6")
    )
    model = resolve_model("miniature:teacher")
    tokens = tokens_of(report.folder / "kept", load_tokenizer(model))
    check_soft(tokens, model)
    config = TrainConfig(row_tokens=4096, soft_targets={"teacher": "build"})
    trees = [tree for item in load_data(tokens, config, 4096).items for tree in item.trees]
    assert len(trees) == report.kept > 3
    teacher = load_model(model, False, dtype=torch.float32)
    packed = pack(trees, 4096, 0)
    forward = Forward(teacher, teacher, "blocks", torch.float32, torch.device("cpu"))
    logprobs, _, _ = forward.log_probabilities(packed)
    said = (packed.soft_ids >= 0).all(dim=-1)
    own_words = sum(len(branch.said.ids) for tree in trees for branch in tree.branches)
    assert int(said.sum()) == own_words == sum(len(tree.branches[-1].target) - 1 for tree in trees)
    wanted = logprobs[said].topk(4).values
    assert torch.allclose(
        logprobs[said].gather(-1, packed.soft_ids[said]), packed.soft_logprobs[said], atol=0.01
    )
    assert torch.allclose(packed.soft_logprobs[said], wanted, atol=0.01)


def test_a_second_teacher_is_asked_what_the_first_got_wrong_and_each_row_tells_its_teacher(configure):
    teachers = "build.teachers=[{engine: {model: 'miniature:base'}}, {engine: {model: 'miniature:teacher'}}]"
    config = ("corpus.limit=5", teachers)
    report = build_data(configure(*config))
    made = made_by(report)
    right = [s.trajectory.question.id for s in DataSet(report.folder.parent) if s.fate == "kept"]
    of_base = report.sources["miniature:base"].kept
    assert made["miniature:base"] == [q.id for q in QUESTIONS[:5]]
    assert len(made["miniature:teacher"]) == 5 - of_base
    assert {i.partition("~")[2] for i in made["miniature:teacher"]} == {"1"}
    assert report.sources["miniature:teacher"].kept > 0
    assert report.questions_kept == len(set(right)) == report.kept
    assert report.questions == 5
    again = build_data(configure(*config))
    assert (again.shards_run, made_by(again)) == (0, made)
    everyone = build_data(configure(*config, "build.keep=all"))
    assert [len(ids) for ids in made_by(everyone).values()] == [5, 5]
    routed = teachers.replace("base'}", "base'}, hops: [2]")
    two = [question.id for question in QUESTIONS[:5] if question.hops == 2]
    made = made_by(build_data(configure(config[0], routed, "build.keep=all")))
    assert 0 < len(two) < 5
    assert (made["miniature:base"], len(made["miniature:teacher"])) == (two, 5)


def test_a_wrong_answer_gets_a_second_chance_that_a_rerun_does_not_repeat(configure):
    # With one passage a step the teacher often guesses.
    config = ("reasoning.k=1", "corpus.limit=8", "build.self_correct=true")
    report = build_data(configure(*config))
    found = trajectories(report)
    wrong = [t for t in found if not t.attempt and drop_reason(t, "exact") == "wrong_answer"]
    assert wrong
    assert [t.question.id for t in found if t.attempt] == [t.question.id for t in wrong]
    assert report.questions == 8
    assert report.trajectories == 8 + len(wrong)
    assert build_data(configure(*config)).shards_run == 0


def test_another_filter_setting_reuses_all_trajectories_and_another_k_none(configure):
    build_data(configure(ANNOTATION))
    assert build_data(configure(ANNOTATION, "build.match=contains")).shards_run == 0
    assert build_data(configure(ANNOTATION, "reasoning.k=2")).shards_run == 5


def test_a_verifier_that_asks_the_teacher_scores_committed_shards_once_and_reasons_nothing_again(
    configure, monkeypatch, tmp_path
):
    # The model by a relative path: what actors open by another name is the same model all the same.
    shutil.copytree(ASSETS / "teacher", tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    config = (*ENGINE, "corpus.limit=6", "engine.model=./teacher")
    before = build_data(configure(*config))
    files = {p: p.stat().st_mtime_ns for p in shard_files(before)}
    agreement = ("build.verify.agreement=0.5", "build.verify.agreement_drafts=2", "build.verify.judge=0")
    report = build_data(configure(*config, *agreement))
    assert report.shards_run == 0
    assert {p: p.stat().st_mtime_ns for p in shard_files(report)} == files
    scores = pq.read_table(report.folder / "step_scores").to_pylist()
    steps = [(t.id, s.index) for t in trajectories(report) for s in t.steps]
    for name in ("agreement", "judge"):
        assert [(s["question_id"], s["step"]) for s in scores if s["verifier"] == name] == steps
    assert {s["score"] for s in scores if s["verifier"] == "agreement"} <= {0.0, 0.5, 1.0}
    made = {p: p.stat().st_mtime_ns for p in (report.folder / "scores").rglob("*.parquet")}
    assert len(made) == 4
    build_data(configure(*config, *agreement, "build.verify.agreement=1"))
    assert {p: p.stat().st_mtime_ns for p in made} == made


def test_an_engine_reasons_in_every_slot_and_its_errors_stay_with_their_rows(configure):
    more = [
        Question("endless", "x" * 50_000, ("a",)),
        Question("wide", "Who is the king of " + "Zu " * 900 + "?", ("a",)),
    ]
    config = configure(*ENGINE, "engine.max_model_len=600", "reasoning.k=2", more=more)
    report = build_data(config)
    found = trajectories(report)
    assert [t.question.id for t in found] == [q.id for q in [*QUESTIONS, *more]]
    assert (found[-2].stop_reason, found[-2].steps) == (StopReason.REJECTED, ())
    assert found[-1].stop_reason is StopReason.REJECTED
    assert "engine.max_model_len" in found[-1].error
    assert "rejected    2 questions, the first: the question has 50000 characters" in report.summary()
    for trajectory in found[:-2]:
        assert trajectory.stop_reason in (StopReason.ANSWERED, StopReason.STEP_LIMIT, StopReason.EMPTY)
        assert trajectory.source == "miniature:teacher"
        assert all(step.usage.completion_tokens for step in trajectory.steps)
    assert report.dropped["rejected"] == 2
    dropped = [json.loads(line) for line in (report.folder / "dropped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in dropped][-2:] == ["endless", "wide"]
    assert report.kept + len(dropped) == report.questions == 22

    before = kept_bytes(report)
    drop_shard(report)
    mended = build_data(config)
    assert mended.shards_run == 1
    assert [t.chain for t in trajectories(mended)] == [t.chain for t in found]
    assert kept_bytes(mended) == before


def dying(monkeypatch, marks: Path, deaths: int):
    """Every actor's engine dies at its third question, `deaths` times in all."""

    class Dying(RolloutActor):
        async def _open(self, spec):
            room, asked = await super()._open(spec), []
            ((teacher,),) = room.groups
            run_it = teacher.run

            async def run_or_die(question):
                asked.append(question)
                if len(asked) == 3 and len(list(marks.iterdir())) < deaths:
                    (marks / str(len(list(marks.iterdir())))).touch()
                    raise EngineDeadError("out of memory")
                return await run_it(question)

            teacher.run = run_or_die
            return room

    marks.mkdir()
    monkeypatch.setattr(run, "RolloutActor", Dying)


@pytest.mark.parametrize("blocks", [run._BLOCKS, 2])
def test_a_dead_engine_is_replaced_and_nothing_is_lost(configure, monkeypatch, tmp_path, blocks):
    monkeypatch.setattr(run, "_BLOCKS", blocks)  # a block of one shard each, or of several
    dying(monkeypatch, tmp_path / "marks", deaths=2)
    report = build_data(configure(ANNOTATION))
    assert len(list((tmp_path / "marks").iterdir())) == 2
    assert [t.question for t in trajectories(report)] == QUESTIONS


def test_an_engine_that_always_dies_ends_the_build_with_what_was_committed(configure, monkeypatch, tmp_path):
    dying(monkeypatch, tmp_path / "marks", deaths=100)
    with pytest.raises(EngineDeadError, match=f"started {BARREN + 1} times.*out of memory"):
        build_data(configure(ANNOTATION))
    monkeypatch.undo()
    assert build_data(configure(ANNOTATION)).kept == 20


def test_a_fault_of_an_actor_is_named_and_what_was_committed_is_kept(configure, monkeypatch):
    class Faulty(RolloutActor):
        async def _make(self, number, shard):
            if shard == 1:
                raise ZeroDivisionError("of this\nprogram")
            return await super()._make(number, shard)

    monkeypatch.setattr(run, "RolloutActor", Faulty)
    with pytest.raises(SteperError, match=r"a rollout actor failed \(ZeroDivisionError: of this program;"):
        build_data(configure(ANNOTATION))
    monkeypatch.undo()
    assert build_data(configure(ANNOTATION)).kept == 20


def test_errors_that_a_person_must_mend_keep_their_type(configure, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        build_data(configure("engine.model=/nowhere"))
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    with pytest.raises(ModelError, match=str(tmp_path)):
        build_data(configure(f"engine.model={tmp_path / 'model'}", "build.shard_size=2"))


def test_duplicate_question_ids_and_passage_ids_are_data_errors(configure):
    with pytest.raises(DataError, match=QUESTIONS[3].id):
        build_data(configure(ANNOTATION, more=[QUESTIONS[3]]))
    config = configure(ANNOTATION)
    other = json.dumps(to_row(Passage(PASSAGES[0].id, "Other", "Other text.")))
    with config.corpus.passages.open("a") as stream:
        stream.write(other + "\n")
    with pytest.raises(DataError, match=PASSAGES[0].id):
        build_data(config)


def test_a_k_larger_than_the_corpus_takes_all_passages_there_are(configure):
    config = configure(ANNOTATION, "reasoning.k=500", "reasoning.max_passages=1000")
    first = trajectories(build_data(config))[0].steps[0]
    assert 4 < len(first.hits) <= len(PASSAGES)
