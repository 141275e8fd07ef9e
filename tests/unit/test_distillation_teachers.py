"""Several teachers, several samples and second chances: who is asked, what they see, what is made of it."""

from dataclasses import replace

import pytest
from distilled import trajectory
from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import Config, ReasoningConfig, SamplingConfig
from steper_ray.config.file import ConfigError, load_config
from steper_ray.distillation.assemble import Part, assemble
from steper_ray.distillation.examples import make_examples
from steper_ray.distillation.filtering import choose, drop_reason
from steper_ray.distillation.inspection import DataSet, inspect
from steper_ray.distillation.inspection_text import page, plain
from steper_ray.distillation.inspection_text import trajectory as show
from steper_ray.distillation.report import SourceCount
from steper_ray.distillation.shards import ShardStore, cut
from steper_ray.distillation.teachers import ask, teacher_runs, turns
from steper_ray.errors import GenerationError
from steper_ray.prompt import LAYOUTS, PromptEncoder
from steper_ray.reasoning import Reasoner
from steper_ray.schema import Passage, Question, StopReason

PASSAGES = [Passage("p1", "Alba", "Alba was made by Bo."), Passage("p2", "Bo", "Bo was born in Cem.")]
QUESTION = Question("q", "Where was the maker of Alba born?", ("Zed",))
FACT = "Alba was made by Bo. "


def answer(said):
    return f"So the answer is: {said}. "


def build(*overrides):
    return load_config(None, overrides).build


def samples(generator, n=1, **config):
    how = (KeywordRetriever(PASSAGES), generator, ReasoningConfig(**config), SamplingConfig(temperature=1))
    return [Reasoner(*how, "teacher", number) for number in range(n)]


async def test_samples_are_taken_until_one_is_right():
    generator = ScriptedGenerator([answer("Cem"), FACT, answer("Zed"), answer("Zed")])
    teachers = samples(generator, 3)
    (group,) = turns(teachers, build())
    found = await ask(QUESTION, group, build())
    assert [(t.sample, t.answer) for t in found] == [(0, "Cem"), (1, "Zed")]
    assert len(generator.prompts) == 3


def test_all_samples_may_be_asked_at_once_where_all_are_wanted():
    teachers = samples(ScriptedGenerator([]), 3)
    assert [list(group) for group in turns(teachers, build("build.keep=all"))] == [[t] for t in teachers]
    assert turns(teachers, build("build.ask=all")) == turns(teachers, build("build.keep=majority"))


@pytest.mark.parametrize("tokenizer", [None, CharTokenizer()])
async def test_a_second_chance_sees_its_own_wrong_chain_at_every_step_and_never_the_right_answer(tokenizer):
    generator = ScriptedGenerator([FACT, answer("Alba"), "Bo was born in Cem. ", answer("Zed")], tokenizer)
    (group,) = turns(samples(generator), build("build.self_correct=true"))
    first, second = await ask(QUESTION, group, build("build.self_correct=true"))
    assert (first.answer, first.attempt, first.id) == ("Alba", 0, "q")
    assert (second.answer, second.attempt, second.id) == ("Zed", 1, "q~0.1")
    assert second.source == "teacher"
    for prompt in generator.prompts[2:]:
        shown, passages, _ = prompt.partition("Title: ")
        assert "Alba was made by Bo. So the answer is: Alba." in shown
        assert QUESTION.text in shown
        assert passages
        assert "Zed" not in prompt
    assert all("earlier attempt" not in prompt for prompt in generator.prompts[:2])
    assert len(set(generator.seeds)) == 4


async def test_the_examples_of_a_second_chance_do_not_show_the_first():
    generator = ScriptedGenerator([answer("Alba"), FACT, answer("Zed")], CharTokenizer())
    (group,) = turns(samples(generator), build("build.self_correct=true"))
    _, second = await ask(QUESTION, group, build("build.self_correct=true"))
    encoder = PromptEncoder(CharTokenizer(), LAYOUTS["ircot"])
    for example, asked in zip(make_examples(second), generator.prompts[1:], strict=True):
        passages = [p for step in example.passages for p in step]
        prompt = encoder.prompt(example.question, passages, example.chain[: example.step - 1])
        told = generator.tokenizer.decode(prompt)
        assert asked.endswith(told)
        assert "earlier attempt" in asked.removesuffix(told)
        assert example.question_id == "q~0.1"


@pytest.mark.parametrize("replies", [[answer("Zed")], ["", ""], [FACT], [ValueError("no")]])
async def test_only_a_wrong_answer_gets_a_second_chance(replies):
    replies = [GenerationError(str(r)) if isinstance(r, Exception) else r for r in replies]
    (group,) = turns(samples(ScriptedGenerator(replies), max_steps=1), build("build.self_correct=true"))
    (only,) = await ask(QUESTION, group, build("build.self_correct=true"))
    assert only.attempt == 0


async def test_a_second_chance_has_no_vote_in_the_majority():
    replies = [answer("Cem"), answer("Cem"), answer("Zed"), answer("Zed"), answer("Zed")]
    config = build("build.self_correct=true", "build.keep=majority")
    generator = ScriptedGenerator([replies[0], replies[2], replies[1], replies[3], replies[4]])
    found = [t for group in turns(samples(generator, 3), config) for t in await ask(QUESTION, group, config)]
    assert [(t.answer, t.attempt) for t in found] == [
        ("Cem", 0),
        ("Zed", 1),
        ("Cem", 0),
        ("Zed", 1),
        ("Zed", 0),
    ]
    reasons = [drop_reason(t, "exact") for t in found]
    assert choose(found, reasons, "majority", "exact").count(None) == 0
    assert choose(found, reasons, "first", "exact") == [
        "wrong_answer",
        None,
        "wrong_answer",
        "spare",
        "spare",
    ]
    assert found[0].stop_reason is StopReason.ANSWERED


def test_each_teacher_is_a_run_of_its_own_with_what_it_does_not_say_from_the_build():
    config = load_config(
        None,
        [
            "build.teachers=[{engine: {model: small}, samples: 2, temperature: 0.7}, "
            "{engine: {kind: vllm, model: big, tensor_parallel_size: 4}, num_gpus: 4, engines: 3}]",
            "build.in_flight=7",
            "sampling.max_tokens=9",
        ],
    )
    small, big = teacher_runs(config)
    assert (small.first_sample, big.first_sample) == (0, 2)
    assert (small.config.engine.model, big.config.engine.model) == ("small", "big")
    assert (small.config.sampling.temperature, big.config.sampling.temperature) == (0.7, 0.0)
    assert (small.config.build.samples, big.config.build.samples) == (2, 1)
    assert (small.config.build.num_gpus, big.config.build.num_gpus) == (0, 4)
    assert (small.config.build.engines, big.config.build.engines) == (1, 3)
    assert {run.config.build.in_flight for run in (small, big)} == {7}
    assert {run.config.sampling.max_tokens for run in (small, big)} == {9}
    assert teacher_runs(load_config(None, []))[0].config == load_config(None, [])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["build.keep=majority", "build.ask=until_right"], "leave `ask` out"),
        (["build.teacher=annotation", "build.self_correct=true"], "annotations are no model"),
        (["build.teachers=[{engine: {}, samples: 2}]"], "set sampling.temperature"),
        (
            ["build.teachers=[{engine: {}}]", "build.samples=2", "sampling.temperature=1"],
            "leave build.samples out",
        ),
        (
            ["build.teachers=[{engine: {modl: x}}]"],
            r"build.teachers.0.engine.modl: unknown field; did you mean",
        ),
    ],
)
def test_choices_that_cannot_be_are_refused_with_the_fix(overrides, says):
    with pytest.raises(ConfigError, match=says):
        load_config(None, overrides)


def test_what_two_teachers_gave_is_told_and_read_question_by_question(tmp_path):
    store = ShardStore(tmp_path / "data" / "trajectories", "run")
    store.clean()
    small = [replace(trajectory(n, answer="Cem" if n == 2 else "Alba"), source="small") for n in (1, 2, 3)]
    corrected = replace(trajectory(3), source="small", attempt=1)
    big = [replace(trajectory(1), source="big", sample=1)]
    parts = []
    for name, made in (("small", [*small, corrected]), ("big", big)):
        questions = [t.question for t in made if not t.attempt]
        shards = cut(questions, 2, name)
        for shard in shards:
            store.commit(shard, [t for t in made if t.question in shard.questions])
        parts.append(Part({"teacher": name}, shards, store, {}))
    report = assemble(Config(run_dir=tmp_path), parts, run=3, skipped=0)
    assert (report.questions, report.questions_kept, report.shards) == (3, 3, 3)
    assert report.sources == {"small": SourceCount(4, 2, 1), "big": SourceCount(1, 1, 0)}
    assert "small: 4 chains, kept 2, 1 of them at the second chance" in report.summary()
    assert [(s.trajectory.id, s.fate) for s in DataSet(tmp_path)] == [
        ("q1", "wrong_answer"),
        ("q1~1", "kept"),
        ("q2", "kept"),
        ("q3", "wrong_answer"),
        ("q3~0.1", "kept"),
    ]
    assert "small, second chance" in plain(show(list(DataSet(tmp_path))[-1]))
    page(DataSet(tmp_path), inspect(DataSet(tmp_path)), DataSet(tmp_path), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert [html.count(f"; by {name}</p>") for name in ("small", "big", "small, second chance")] == [3, 1, 1]
