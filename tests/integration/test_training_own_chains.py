"""On-policy distillation: the student's own chains, the prompts that they were written under, and exact resumes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_worker import one_worker
from training_examples import gold_examples, tokens_of, trajectories_of, write_trajectories

from steper_ray.config import Config
from steper_ray.core.errors import ModelError, TrainingError
from steper_ray.corpora.miniature import make_corpus
from steper_ray.models import resolve_model
from steper_ray.pretrained import load_model, load_tokenizer
from steper_ray.retrieval import ensure_index, read_manifest
from steper_ray.rollouts.sampler import student_rollouts
from steper_ray.schema import Usage
from steper_ray.training.encoding import encode
from steper_ray.training.engine import Engine
from steper_ray.training.job import TrainJob, make_task
from steper_ray.training.loop import Trainer
from steper_ray.training.metrics import read_steps
from steper_ray.training.own_chains import StudentBatches, written
from steper_ray.training.packing import pack_rows
from steper_ray.training.shares import filler, split
from steper_ray.training.together import load_together

MODEL = resolve_model("miniature:base")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with one_worker(tmp_path_factory.mktemp("group")) as worker:
        yield worker


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An index of two worlds, and trajectories over their questions."""
    folder = tmp_path_factory.mktemp("world")
    passages, _ = make_corpus(5, 2, 4, "train")
    ensure_index(passages, Config().retrieval, folder / "index")
    write_trajectories(folder / "kept.parquet", gold_examples())
    return folder


def task_of(world, folder, *, teacher="miniature:teacher", reasoning=None, **train):
    soft = {"teacher": teacher, "beta": 0.5}
    settings = {
        "student": MODEL,
        "method": "on_policy",
        "soft_targets": soft,
        "batch_examples": 10,
        "lr": 1e-3,
    }
    config = Config.model_validate(
        {
            "train": {**settings, "workers": 1, "max_steps": 4, "checkpoint_every": 2, **train},
            "reasoning": {"max_steps": 3, "k": 2, **(reasoning or {})},
            "sampling": {"max_tokens": 24},
            "engine": {"model": MODEL},
        }
    )
    rollouts = student_rollouts(config, world / "index", read_manifest(world / "index").fingerprint)
    job = TrainJob("student", config.train, world / "kept.parquet", folder / "student", rollouts=rollouts)
    return replace(make_task(job, folder), tokens=tokens_of(world / "kept.parquet", load_tokenizer(MODEL)))


def train(task, alone, resume=None, stop=None):
    """Runs it in this process; returns its lines and the folder of its last checkpoint."""
    saved = list[Path]()

    def save(write, step):
        saved.append(task.metrics.parent / f"step-{step}")
        write(saved[-1])
        if step == stop:
            raise KeyboardInterrupt

    trainer = Trainer(task, alone, resume)
    try:
        trainer.run(save)
    except KeyboardInterrupt:
        assert stop is not None
    trainer.close()
    return read_steps(task.metrics), saved[-1] if saved else None


def untimed(lines):
    """What does not depend on the hour."""
    apart = {"tokens_per_second", "flops_per_second", "mfu", "memory", "own_chains"}
    chains = [{k: v for k, v in line["own_chains"].items() if k != "seconds"} for line in lines]
    return [{k: v for k, v in line.items() if k not in apart} for line in lines], chains


def test_a_branch_is_the_prompt_that_was_asked_and_what_was_written_with_its_end(world, alone, tmp_path):
    task = task_of(world, tmp_path)
    rollouts, asked = task.job.rollouts, []
    sampler = rollouts.open(MODEL)
    stream = sampler._generator.stream

    def spy(prompt, *more):
        asked.append(tuple(prompt))
        return stream(prompt, *more)

    sampler._generator.stream = spy
    questions = [t.question for t in trajectories_of(gold_examples())]
    chains = sampler.answer(questions, 0)
    again, other = sampler.answer(questions, 0), sampler.answer(questions, 1)
    sampler.close()
    assert [c.chain for c in chains] == [c.chain for c in again] != [c.chain for c in other]
    assert [c.question for c in chains] == questions
    assert all(step.usage != Usage() for chain in chains for step in chain.steps)
    encoder = sampler._reasoner._prompts
    made = []
    for chain in chains:
        one = written(chain.id, chain, encoder, task.job.config, 2048)
        (tree,) = one.item.trees
        assert len(tree.branches) == len(chain.steps)
        pieces = [b.target for b in tree.branches]
        assert all(piece[-1] == encoder.end for piece in pieces)
        assert [i for piece in pieces for i in piece[:-1]] == encode(chain, encoder).chain
        assert one.tokens == sum(len(piece) - 1 for piece in pieces)
        made += [(*tree.trunk[: b.cut], *b.prompt) for b in tree.branches]
    assert set(made) <= set(asked)
    assert len(made) > len(chains)


@pytest.mark.parametrize("settings", [{}, {"zero_stage": 2}, {"lora": {"rank": 4}}])
def test_the_student_asks_with_the_weights_of_the_moment(world, alone, tmp_path, settings):
    task = task_of(world, tmp_path, **settings)
    engine = Engine(MODEL, task.job.config, alone)
    batches = StudentBatches(task, load_together(task), alone)
    batch, _ = batches.batch(0, engine)
    ids = torch.tensor([batch.items[0].trees[0].trunk])
    asked = batches._sampler._generator.model
    with torch.no_grad():
        before = asked(input_ids=ids).logits
    (packed,) = split(batch, 1, task.job.config)[0].packed(filler(0))
    for _ in range(2):  # of an adapter's two matrices one begins at zero
        engine.backward(engine.losses(packed).sum(), last=True)
        engine.step(0.01)
    again, _ = batches.batch(0, engine)
    assert [item.question_id for item in again.items] == [item.question_id for item in batch.items]
    with torch.no_grad(), engine.attending("eager"):
        wanted, found = engine.module(input_ids=ids).logits, asked(input_ids=ids).logits
    assert (found - before).abs().max() > 0.01
    assert torch.allclose(found, wanted, atol=1e-4)
    batches.close()
    engine.close()


def test_a_training_learns_goes_on_exactly_and_tells_what_was_written(world, alone, tmp_path):
    whole, _ = train(task_of(world, tmp_path / "whole"), alone)
    losses = [line["loss"] for line in whole]
    assert len(whole) == 4
    _, checkpoint = train(task_of(world, tmp_path / "cut"), alone, stop=2)
    lines, _ = train(task_of(world, tmp_path / "cut"), alone, resume=checkpoint)
    assert untimed(lines) == untimed(whole)
    chains = whole[0]["own_chains"]
    assert chains["chains"] == 2
    assert chains["tokens"] > 10
    assert chains["left_out"] == 0 <= chains["right"] <= chains["answered"] <= 2
    assert all(torch.isfinite(torch.tensor(losses)))
    trained = load_model(str(tmp_path / "whole" / "student"))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(trained.parameters(), load_model(MODEL).parameters(), strict=True)
    )


def test_who_says_what_the_teacher_says_has_nothing_to_learn(world, alone, tmp_path):
    lines, _ = train(task_of(world, tmp_path, teacher="miniature:base", max_steps=1), alone)
    assert max(abs(loss or 0) for line in lines for loss in line["losses"].values()) < 1e-5


def test_a_right_chain_is_rewarded_and_a_wrong_one_is_corrected(world, tmp_path):
    (chain, *_) = trajectories_of(gold_examples())
    encoder = task_of(world, tmp_path).job.rollouts.open(MODEL)._reasoner._prompts

    def rewards(answer, kind):
        config = task_of(world, tmp_path, on_policy={"reward": kind}).job.config
        one = written("a", replace(chain, answer=answer), encoder, config, None)
        (reward,) = {round(branch.reward, 3) for tree in one.item.trees for branch in tree.branches}
        return reward, one.right

    assert rewards("Cem", "exact") == (1.0, True)
    assert rewards("Bob", "exact") == (0.0, False)
    assert rewards("Cem", "none") == (0.0, True)
    assert rewards("Cem Bob", "f1") == (0.667, False)
    assert rewards("", "f1") == (0.0, False)


def test_a_teacher_that_knows_the_answer_reads_the_same_words_behind_another_prompt(world, alone, tmp_path):
    (chain, *_) = trajectories_of(gold_examples())
    soft = {"teacher": "self", "privileged": True, "beta": 0.5}
    task = task_of(world, tmp_path, soft_targets=soft, max_steps=2)
    encoder = task.job.rollouts.open(MODEL)._reasoner._prompts
    (tree,) = written("a", chain, encoder, task.job.config, None, chain.chain).item.trees
    taught = tree.taught
    assert [b.target for b in taught.branches] == [b.target for b in tree.branches]
    assert [b.prompt for b in taught.branches] == [b.prompt for b in tree.branches]
    shown = encoder.tokenizer.decode(taught.trunk)
    assert all(piece in shown for piece in chain.chain)
    assert encoder.tokenizer.decode(tree.trunk) in shown.replace(
        shown[: shown.index("step by step.") + 15], "<s>"
    )
    packed = pack_rows([tree, tree], [[0], [1]], 0)
    for name in ("labels", "example"):
        mine, theirs = getattr(packed, name), getattr(packed.taught, name)
        assert torch.equal(mine[packed.example >= 0], theirs[packed.taught.example >= 0])
    lines, _ = train(task, alone)
    assert all(loss > 0 for line in lines for loss in line["losses"].values() if loss is not None)


def test_what_has_no_room_is_cut_behind_a_step_or_named(world, alone, tmp_path):
    (chain, *_) = trajectories_of(gold_examples())
    task = task_of(world, tmp_path)
    encoder = task.job.rollouts.open(MODEL)._reasoner._prompts
    (tree,) = written("a", chain, encoder, task.job.config, None).item.trees
    row = task.job.config.model_copy(update={"row_tokens": len(tree) - 1})
    (shorter,) = written("a", chain, encoder, row, None).item.trees
    assert shorter.branches == tree.branches[:-1]
    assert len(shorter.trunk) == shorter.branches[-1].cut
    engine, batches = Engine(MODEL, task.job.config, alone), StudentBatches(task, load_together(task), alone)
    batches._limit = 5
    with pytest.raises(TrainingError, match=r"wrote nothing.*step 1.*longer than train\.row_tokens \(2048\)"):
        batches.batch(0, engine)
    batches.close()
    engine.close()


def test_a_training_without_rollouts_or_with_an_engine_apart_is_refused(world, tmp_path):
    task = task_of(world, tmp_path)
    with pytest.raises(TrainingError, match="on_policy, and this call of train"):
        make_task(replace(task.job, rollouts=None), tmp_path)
    config = Config.model_validate({"engine": {"kind": "vllm"}, "train": task.job.config.model_dump()})
    with pytest.raises(ModelError, match=r"set engine\.kind=transformers"):
        student_rollouts(config, world / "index", "worlds")
    other = task_of(world, tmp_path, reasoning={"k": 3})
    assert other.fingerprint != task.fingerprint
