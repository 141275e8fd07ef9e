"""`steper estimate`: the arithmetic of tokens against prompts and runs as they are, and time from stated figures."""

import asyncio
import dataclasses
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
from distilled import assembled, trajectory, with_usage
from scripted import CharTokenizer
from typer.testing import CliRunner

from steper_ray.cli.main import app
from steper_ray.config import Config
from steper_ray.core.errors import DataError, ModelError, SteperError
from steper_ray.corpora import open_corpus
from steper_ray.data import estimate_inputs
from steper_ray.data.estimate import (
    GPUS,
    Bill,
    Checks,
    Course,
    Gpu,
    Lengths,
    Model,
    StepTokens,
    even_course,
    roofline,
    step_tokens,
    total,
    typical_kv_bytes,
)
from steper_ray.data.estimate_inputs import corpus_size, course_of_run, model_size, speed_of_run
from steper_ray.data.estimate_report import Options, make_estimate, text
from steper_ray.data.inspection import DataSet, inspect
from steper_ray.data.inspection_text import plain
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.generation import open_generator
from steper_ray.generation.tokens import load_tokenizer
from steper_ray.models import ASSETS
from steper_ray.prompts import PromptEncoder
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval.index import ensure_index, index_folder, open_index
from steper_ray.schema import Passage

PAPER = Path(__file__).parents[3] / "jobs" / "configs" / "paper_musique.yaml"
SMALL = {"miniature": {"worlds": 1, "questions_per_world": 5}}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """A real run of the embedded teacher: its config, and the data set with what its engine told."""
    config = Config(run_dir=tmp_path_factory.mktemp("run"), corpus=SMALL)
    corpus = open_corpus(config.corpus)
    index = index_folder(config.retrieval, config.run_dir, corpus.fingerprint())
    ensure_index(corpus.passages(), config.retrieval, index, corpus.fingerprint())
    retriever = open_index(index, config.retrieval, corpus.fingerprint())

    async def reason():
        engine = open_generator(config.engine)
        reasoner = Reasoner(retriever, engine, config.reasoning, config.sampling, "teacher")
        try:
            return await asyncio.gather(*(reasoner.run(question) for question in corpus.questions()))
        finally:
            await engine.close()

    trajectories = asyncio.run(reason())
    assembled(config.run_dir, trajectories)
    return config, trajectories


def test_the_tokens_of_each_step_are_those_of_the_prompts_to_the_token():
    layout = dataclasses.replace(FRAMEWORKS["ircot"].layout, preamble="Answer step by step.\n\n")
    encoder = PromptEncoder(CharTokenizer(), layout)
    passages = [Passage(str(n), "Title", f"text of {n}") for n in range(6)]
    chain = ("It is Bo.", "Bo is Cy.", "It is Cy.")
    prompts = [encoder.prompt("Who?", passages[: 2 * s], chain[: s - 1]) for s in (1, 2, 3)]
    lengths = Lengths(
        preamble=len(encoder.trunk(())),
        passage=len(encoder.trunk(passages[:1])) - len(encoder.trunk(())),
        question=len(encoder.question("Who?")),
    )
    course = even_course(3, 3, found=2, written=len(encoder.chain(chain[:1])))
    steps = step_tokens(1, lengths, course, max_passages=20)
    assert [step.prompt for step in steps] == [len(prompt) for prompt in prompts]
    shared = [
        next(n for n, (one, other) in enumerate(zip(*pair, strict=False)) if one != other)
        for pair in pairwise(prompts)
    ]
    assert [step.cached for step in steps] == [lengths.preamble, *shared]


def test_a_real_run_read_and_wrote_what_its_course_says(miniature):
    config, trajectories = miniature
    found = inspect(DataSet(config.run_dir))
    size = corpus_size(config)
    assert (size.questions, size.how) == (5, "counted with the tokenizer of miniature:teacher")
    course = course_of_run(DataSet(config.run_dir), found, config)
    # The passages that were found, not the corpus' mean: in so small a world they are longer.
    encoder = PromptEncoder(load_tokenizer(str(ASSETS / "teacher")), FRAMEWORKS["ircot"].layout)
    blocks = [block for t in trajectories for block in FRAMEWORKS["ircot"].layout.trunk_segments(t.passages)]
    lengths = dataclasses.replace(size.lengths, passage=fmean(len(encoder.segment(b)) for b in blocks))
    steps = step_tokens(len(trajectories), lengths, course, config.reasoning.max_passages)
    for step, told in zip(steps, found.costs, strict=True):
        assert step.generations == told.n
        assert step.written == pytest.approx(told.completion_tokens)
        assert step.prompt == pytest.approx(told.prompt_tokens, rel=0.1)
    assert total(steps).prompt == pytest.approx(found.cost.prompt_tokens, rel=0.05)
    assert found.cost.cached_tokens == pytest.approx(total(steps).cached, rel=0.3)


def test_an_estimate_by_an_earlier_run_goes_as_it_went(miniature):
    config, trajectories = miniature
    made = make_estimate(config, Options(from_run=config.run_dir))
    cost = inspect(DataSet(config.run_dir)).cost
    assert made.total.generations == pytest.approx(cost.n)
    assert made.total.written == pytest.approx(cost.completion_tokens)
    waits = cost.retrieval_seconds + cost.generation_seconds
    assert made.bill.engine_hours == pytest.approx(waits / len(trajectories) / 3600)
    twice = config.model_copy(update={"build": config.build.model_copy(update={"samples": 2})})
    assert make_estimate(twice, Options(from_run=config.run_dir)).total.written == 2 * made.total.written


def test_a_run_with_another_k_finds_as_many_times_more(tmp_path):
    told = [with_usage(trajectory(n)) for n in range(3)]
    assembled(tmp_path, told)  # k is 4; one passage at each of two steps
    data = DataSet(tmp_path)
    course = course_of_run(data, inspect(data), Config(reasoning={"k": 8}))
    assert course == Course((1.0, 1.0), (2.0, 2.0), (10.0, 20.0))
    assert course_of_run(data, inspect(data), Config(reasoning={"max_steps": 1})).reach == (1.0,)
    assert speed_of_run(data, inspect(data)).write == pytest.approx(30 * 3 / (3 * 0.3 / 3))


def test_a_run_that_no_model_wrote_gives_no_speed(tmp_path):
    assembled(tmp_path, [trajectory(1)])
    data = DataSet(tmp_path)
    for asked in (
        lambda found: course_of_run(data, found, Config()),
        lambda found: speed_of_run(data, found),
    ):
        with pytest.raises(DataError, match="tell no t"):
            asked(inspect(data))


LENGTHS = Lengths(preamble=100, passage=10, question=5)


def test_no_prompt_holds_more_than_the_most_passages():
    steps = step_tokens(2, LENGTHS, even_course(3, 3, found=4, written=7), max_passages=6)
    assert [step.prompt for step in steps] == [2 * (145), 2 * (165 + 7), 2 * (165 + 14)]
    assert [step.cached for step in steps] == [2 * 100, 2 * 140, 2 * 160]


def test_a_mean_of_steps_that_is_no_whole_number_is_a_share_of_trajectories():
    assert even_course(2.25, 4, 1, 1).reach == (1.0, 1.0, 0.25, 0.0)
    steps = step_tokens(100, LENGTHS, even_course(2.25, 4, 4, 7), 20)
    assert total(steps).generations == 225


def test_verifiers_that_ask_the_teacher_are_paid_for():
    course = Course((1.0,), (4.0,), (7.0,))
    (alone,) = step_tokens(1, LENGTHS, course, 20)
    (drafted,) = step_tokens(1, LENGTHS, course, 20, Checks(drafts=3))
    assert drafted == StepTokens(4, 4 * 145, 2 * 100 + 2 * 145, 4 * 7)
    (judged,) = step_tokens(1, LENGTHS, course, 20, Checks(judge=50))
    assert judged == alone + StepTokens(1, 50 + 45, 0, 1)


def test_reading_is_bound_by_operations_and_writing_by_memory_until_the_batch_is_large():
    gpu = Gpu(flops=1e15, bandwidth=1e12, memory=100e9)
    small = roofline(Model(10e9, 1e5), gpu, 2, batch=1, context=1000)
    assert small.read == pytest.approx(2 * 1e15 * 0.4 / 20e9)
    assert small.write == pytest.approx(2 * 1e12 * 0.6 / (20e9 + 1e8))
    light = roofline(Model(10e9, 0.0001), gpu, 2, batch=10**6, context=1)
    assert light.write == pytest.approx(light.read)
    assert light.seconds(StepTokens(prompt=light.read + 5, cached=5, written=light.write)) == pytest.approx(2)


def test_the_batch_is_what_the_memory_holds_and_weights_that_do_not_fit_are_an_error():
    gpu = Gpu(flops=1e15, bandwidth=1e12, memory=100e9)
    assert roofline(Model(40e9, 1e6), gpu, 1, batch=64, context=1000, memory_share=0.9).batch == 10
    with pytest.raises(
        SteperError, match=r"140 GB of weights do not fit into 1 x 80 GB: .*tensor_parallel_size"
    ):
        roofline(Model(70e9, 1e5), GPUS["H100"], 1, batch=1, context=1)


def test_a_typical_model_is_near_the_published_ones():
    assert typical_kv_bytes(8e9) == 2 * 32 * 8 * 128 * 2
    assert typical_kv_bytes(70e9) == pytest.approx(2 * 80 * 8 * 128 * 2, rel=0.01)


def test_a_models_size_is_read_from_its_folder(miniature):
    from transformers import AutoModelForCausalLM

    size = model_size(Config().engine)
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "teacher")
    assert size.params == sum(p.numel() for p in model.parameters())
    shape = model.config
    assert size.kv_bytes == 4 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    with pytest.raises(ModelError, match=r"not on this disk: give its size, such as --params 70e9"):
        model_size(Config(engine={"model": "someone/big"}).engine)


def test_a_sample_of_the_corpus_stands_for_all_of_it(monkeypatch):
    whole = corpus_size(Config(corpus=SMALL))
    monkeypatch.setattr(estimate_inputs, "SAMPLE", 20)
    part = corpus_size(Config(corpus=SMALL))
    assert (part.questions, part.passages) == (whole.questions, whole.passages)
    assert part.lengths.passage != whole.lengths.passage
    assert part.lengths.passage == pytest.approx(whole.lengths.passage, rel=0.2)
    assert part == corpus_size(Config(corpus=SMALL))


def estimated(*arguments):
    run = CliRunner().invoke(app, ["estimate", *arguments], env={"COLUMNS": "200"})
    return run, " ".join(run.stdout.split())


def test_the_papers_teacher_is_estimated_without_its_files():
    small = ["corpus.kind=miniature", "corpus.questions=null", "corpus.miniature.worlds=2"]
    run, told = estimated("--config", str(PAPER), "--params", "70e9", "--gpus", "8", "--price", "2", *small)
    assert run.exit_code == 0
    assert "16 questions, 16 trajectories" in told
    assert "4 characters a token" in told
    assert "5 steps a trajectory (S: none ends before), 4 passages new at each" in told
    assert "70e9 parameters" in told
    assert "with 16 generations side by side" in told
    assert "with 2 engines of 4 GPU" in told
    assert "20,480 tokens written" in told  # 16 x 5 x 256, at most
    run, _ = estimated("--config", str(PAPER), *small)
    assert isinstance(run.exception, ModelError)


def test_a_speed_that_is_given_needs_no_model_of_the_gpu():
    config = Config(corpus=SMALL, engine={"model": "someone/big"}, build={"engines": 2})
    made = make_estimate(config, Options(tokens_per_second=100, steps=3, written=20, gpu_price=4))
    assert made.bill == Bill(5 * 3 * 20 / 100 / 3600, 2, 1, 4)
    assert (made.bill.hours, made.bill.price) == (made.bill.engine_hours / 2, made.bill.gpu_hours * 4)
    assert made.most.written == 5 * 5 * 128
    assert "20 tokens written a step (--written)" in " ".join(plain(text(made)).split())


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"build": {"teacher": "annotation"}}, {}, "no model is asked"),
        ({}, {"gpu": "X"}, "known are A100, H100, H200"),
        ({}, {"steps": 6}, r"--steps 6: a trajectory has 5 at most"),
        ({"engine": {"tensor_parallel_size": 4}}, {"gpus": 2}, "one engine takes 4"),
    ],
)
def test_what_cannot_be_estimated_names_the_fix(config, options, message):
    with pytest.raises(DataError, match=message):
        make_estimate(Config(corpus=SMALL, **config), Options(**options))


def test_prompts_that_will_not_fit_are_told_before_the_run():
    short = Config(corpus=SMALL, engine={"max_model_len": 256})
    assert any("engine.max_model_len is 256" in line for line in make_estimate(short, Options()).assumptions)
    assert not any(
        "max_model_len" in line for line in make_estimate(Config(corpus=SMALL), Options()).assumptions
    )
