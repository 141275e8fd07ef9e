"""`steper estimate`: the arithmetic of tokens against prompts and runs as they are, and time from stated figures."""

import asyncio
import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
from distilled import assembled, trajectory
from scripted import CharTokenizer
from typer.testing import CliRunner

from steper_ray.cli.main import app
from steper_ray.config import Config
from steper_ray.core.errors import DataError, ModelError
from steper_ray.corpora import open_corpus
from steper_ray.data.estimate import (
    Lengths,
    Options,
    Profile,
    make_estimate,
    parameters,
    step_tokens,
    text,
    total,
)
from steper_ray.data.inspection import DataSet, inspect
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.generation import open_generator
from steper_ray.models import ASSETS
from steper_ray.prompts import PromptEncoder
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval.index import ensure_index, index_folder, open_index
from steper_ray.schema import Passage

PAPER = Path(__file__).parents[3] / "jobs" / "configs" / "paper_musique.yaml"
SMALL = {"miniature": {"worlds": 1, "questions_per_world": 5}}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """A real run of the embedded teacher: its config, and the data set with its engine's usage."""
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
    profile = Profile((1, 1, 1), (2, 2, 2), (len(encoder.chain(chain[:1])),) * 3)
    steps = step_tokens(1, lengths, profile, max_passages=20)
    assert [step.prompt for step in steps] == [len(prompt) for prompt in prompts]
    shared = [
        next(n for n, (one, other) in enumerate(zip(*pair, strict=False)) if one != other)
        for pair in pairwise(prompts)
    ]
    assert [step.cached for step in steps] == [lengths.preamble, *shared]


def test_an_estimate_by_an_earlier_run_goes_as_it_went(miniature):
    config, trajectories = miniature
    made = make_estimate(config, Options(from_run=config.run_dir))
    found = inspect(DataSet(config.run_dir))
    assert total(made.steps).generations == pytest.approx(found.cost.n)
    assert total(made.steps).written == pytest.approx(found.cost.completion_tokens)
    # Passages that were found are longer than the corpus' mean in so small a world.
    assert total(made.steps).prompt == pytest.approx(found.cost.prompt_tokens, rel=0.3)
    waits = found.cost.retrieval_seconds + found.cost.generation_seconds
    assert made.hours * made.engines == pytest.approx(waits / len(trajectories) / 3600)
    twice = config.model_copy(update={"build": config.build.model_copy(update={"samples": 2})})
    assert (
        total(make_estimate(twice, Options(from_run=config.run_dir)).steps).written
        == 2 * total(made.steps).written
    )
    wider = config.model_copy(update={"reasoning": config.reasoning.model_copy(update={"k": 8})})
    assert (
        total(make_estimate(wider, Options(from_run=config.run_dir)).steps).prompt > total(made.steps).prompt
    )


def test_a_run_that_no_model_wrote_gives_no_speed(tmp_path):
    assembled(tmp_path, [trajectory(1)])
    with pytest.raises(DataError, match="no model wrote them"):
        make_estimate(Config(corpus=SMALL), Options(from_run=tmp_path))


LENGTHS = Lengths(preamble=100, passage=10, question=5)


def test_no_prompt_holds_more_than_the_most_passages():
    steps = step_tokens(2, LENGTHS, Profile((1,) * 3, (4,) * 3, (7,) * 3), max_passages=6)
    assert [step.prompt for step in steps] == [2 * (145), 2 * (165 + 7), 2 * (165 + 14)]
    assert [step.cached for step in steps] == [2 * 100, 2 * 140, 2 * 160]


def test_a_larger_gpu_or_more_of_them_take_less_time_and_weights_that_do_not_fit_are_an_error():
    config = Config(corpus=SMALL, engine={"model": "someone/big", "tensor_parallel_size": 4})
    hours = [make_estimate(config, Options(gpu=gpu, params=70e9)).hours for gpu in ("A100", "H100", "H200")]
    assert hours == sorted(hours, reverse=True)
    halved = make_estimate(config, Options(params=70e9, gpus=8))
    assert halved.hours == pytest.approx(hours[1] / 2)
    single = Config(corpus=SMALL, engine={"model": "someone/big"})
    with pytest.raises(
        ModelError, match=r"140 GB of weights do not fit into 1 x 80 GB: .*tensor_parallel_size"
    ):
        make_estimate(single, Options(params=70e9))


def test_a_models_size_is_read_from_its_folder(miniature):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ASSETS / "teacher")
    assert parameters(Config().engine) == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.02)
    with pytest.raises(ModelError, match=r"not on this disk: give its size, such as --params 70e9"):
        parameters(Config(engine={"model": "someone/big"}).engine)


def estimated(*arguments):
    run = CliRunner().invoke(app, ["estimate", *arguments], env={"COLUMNS": "200"})
    return run, " ".join(run.stdout.split())


def test_the_papers_teacher_is_estimated_without_its_files():
    small = ["corpus.kind=miniature", "corpus.questions=null", "corpus.miniature.worlds=2"]
    run, printed = estimated("--config", str(PAPER), "--params", "70e9", "--gpus", "8", *small)
    assert run.exit_code == 0
    assert "16 questions, 16 trajectories" in printed
    assert "4 characters a token" in printed
    assert "5 steps a trajectory, 4 new passages a step" in printed
    assert "70e9 parameters" in printed
    assert "with 16 generations side by side" in printed
    assert "on 2 x 4 GPU" in printed
    run, _ = estimated("--config", str(PAPER), *small)
    assert isinstance(run.exception, ModelError)


def test_a_speed_that_is_given_needs_no_model_of_the_gpu():
    config = Config(corpus=SMALL, engine={"model": "someone/big"}, build={"engines": 2})
    made = make_estimate(config, Options(tokens_per_second=100))
    assert (made.hours, made.engines, made.gpus_each) == (5 * 5 * 32 / 100 / 3600 / 2, 2, 1)
    assert "32 tokens written a step" in text(made)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"build": {"teacher": "annotation"}}, {}, "no model is asked"),
        ({}, {"gpu": "X"}, "known are A100, H100, H200"),
        ({"engine": {"tensor_parallel_size": 4}}, {"gpus": 2}, "one engine takes 4"),
    ],
)
def test_what_cannot_be_estimated_names_the_fix(config, options, message):
    with pytest.raises(DataError, match=message):
        make_estimate(Config(corpus=SMALL, **config), Options(**options))
