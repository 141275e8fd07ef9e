"""Several teachers, several samples and second chances: who is asked, what they see, what is made of it."""

from dataclasses import replace

import pytest
from distilled import rollout_set, trajectory
from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import Config, EngineConfig, ReasoningConfig, SamplingConfig, TeacherConfig
from steper_ray.config.file import ConfigError, load_config
from steper_ray.core.errors import DataError, GenerationError, PromptTooLongError
from steper_ray.data.assemble import assemble
from steper_ray.data.build import _check_routes, _spec, _teachers
from steper_ray.data.examples import make_examples
from steper_ray.data.filtering import choose, drop_reason
from steper_ray.data.inspection import DataSet
from steper_ray.data.inspection_text import plain
from steper_ray.data.inspection_text import trajectory as show
from steper_ray.data.tally import SourceCount
from steper_ray.frameworks import layouts
from steper_ray.prompts import PromptEncoder
from steper_ray.reasoning import Reasoner
from steper_ray.rollouts.questions import write_questions
from steper_ray.rollouts.set import RolloutSet
from steper_ray.rollouts.spec import Asking
from steper_ray.rollouts.teachers import Earlier, ask, groups
from steper_ray.schema import Passage, Question, StopReason

PASSAGES = [Passage("p1", "Alba", "Alba was made by Bo."), Passage("p2", "Bo", "Bo was born in Cem.")]
QUESTION = Question("q", "Where was the maker of Alba born?", ("Zed",))
FACT = "Alba was made by Bo. "


def answer(said):
    return f"So the answer is: {said}. "


CORRECTED = Asking(self_correct=True, until_right=True)


async def asked(generator, asking=CORRECTED, n=1, finals=None, attempts=None, **config):
    """All groups of a question, one after the other."""
    found = [
        await ask(QUESTION, group, asking, finals or {}, attempts or {})
        for group in groups(samples(generator, n, **config), asking)
    ]
    return [t for one in found for t in one.finals], [one.owed for one in found if one.owed is not None]


def samples(generator, n=1, **config):
    how = (KeywordRetriever(PASSAGES), generator, ReasoningConfig(**config), SamplingConfig(temperature=1))
    return [Reasoner(*how, "teacher", number) for number in range(n)]


def test_a_question_that_no_teacher_is_asked_is_an_error_and_both_fixes_work(tmp_path):
    rows = [
        Question(f"q{n}", "Who?", ("Bo",), hops=n, dataset="musique" if n < 4 else "hotpotqa")
        for n in (2, 3, 4)
    ]
    questions = write_questions(tmp_path / "questions", rows, 2)
    routed = [teacher(datasets=("musique",), hops=(2,)), teacher(hops=(4,))]
    with pytest.raises(DataError, match=r"1 of 3 questions .* such as 'q3' \(data set 'musique', hops 3\)"):
        _check_routes(routed, questions)
    _check_routes([teacher(datasets=("musique",), hops=(2, 3)), routed[1]], questions)
    _check_routes([*routed, teacher()], questions)


def teacher(**route):
    return TeacherConfig(engine=EngineConfig(), **route)


async def test_samples_are_taken_until_one_is_right():
    generator = ScriptedGenerator([answer("Cem"), FACT, answer("Zed"), answer("Zed")])
    found, owed = await asked(generator, Asking(until_right=True), 3)
    assert [(t.sample, t.answer) for t in found] == [(0, "Cem"), (1, "Zed")]
    assert (len(generator.prompts), owed) == (3, [])


def test_all_samples_may_be_asked_at_once_where_all_are_wanted():
    teachers = samples(ScriptedGenerator([]), 3)
    assert groups(teachers, Asking(samples=3)) == [[t] for t in teachers]
    assert groups(teachers, Asking(samples=3, until_right=True)) == [teachers]


async def test_what_circumstances_did_is_owed_and_ends_its_group_and_what_is_final_is_not_asked_again():
    asking = Asking(samples=3, until_right=True)
    found, (owed,) = await asked(ScriptedGenerator([answer("Cem"), GenerationError("busy")]), asking, 3)
    assert [(t.sample, t.answer) for t in found] == [(0, "Cem")]
    assert (owed.question, owed.sample, owed.attempt, owed.error, owed.attempts) == ("q", 1, 0, "busy", 1)
    generator = ScriptedGenerator([GenerationError("busy still")])
    finals = {(0, 0): found[0]}
    again, (owed,) = await asked(generator, asking, 3, finals, {(1, 0): 1})
    assert (again, owed.error, owed.attempts, len(generator.prompts)) == (found, "busy still", 2, 1)
    whole, owed = await asked(ScriptedGenerator([answer("Zed")]), asking, 3, finals, {(1, 0): 2})
    assert ([(t.sample, t.answer) for t in whole], owed) == ([(0, "Cem"), (1, "Zed")], [])


async def test_a_question_that_cannot_be_asked_is_final():
    found, owed = await asked(ScriptedGenerator([PromptTooLongError("9 tokens too many")]))
    assert [(t.stop_reason, t.error) for t in found] == [(StopReason.REJECTED, "9 tokens too many")]
    assert owed == []


async def test_a_second_chance_that_is_owed_leaves_its_first_attempt_final():
    found, (owed,) = await asked(ScriptedGenerator([answer("Cem"), GenerationError("busy")]))
    assert [(t.sample, t.attempt) for t in found] == [(0, 0)]
    assert (owed.sample, owed.attempt) == (0, 1)
    whole, _ = await asked(ScriptedGenerator([answer("Zed")]), finals={(0, 0): found[0]})
    assert [(t.attempt, t.answer) for t in whole] == [(0, "Cem"), (1, "Zed")]


@pytest.mark.parametrize("tokenizer", [None, CharTokenizer()])
async def test_a_second_chance_sees_its_own_wrong_chain_at_every_step_and_never_the_right_answer(tokenizer):
    generator = ScriptedGenerator([FACT, answer("Alba"), "Bo was born in Cem. ", answer("Zed")], tokenizer)
    (first, second), _ = await asked(generator)
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
    (_, second), _ = await asked(generator)
    encoder = PromptEncoder(CharTokenizer(), layouts()["ircot"])
    for example, shown in zip(make_examples(second), generator.prompts[1:], strict=True):
        passages = [p for step in example.passages for p in step]
        prompt = encoder.prompt(example.question, passages, example.chain[: example.step - 1])
        told = generator.tokenizer.decode(prompt)
        assert shown.endswith(told)
        assert "earlier attempt" in shown.removesuffix(told)
        assert example.question_id == "q~0.1"


@pytest.mark.parametrize("reply", [answer("Zed"), "", FACT])
async def test_only_a_wrong_answer_gets_a_second_chance(reply):
    (only,), _ = await asked(ScriptedGenerator([reply]), max_steps=1)
    assert only.attempt == 0


async def test_a_second_chance_has_no_vote_in_the_majority():
    replies = [answer("Cem"), answer("Cem"), answer("Zed"), answer("Zed"), answer("Zed")]
    generator = ScriptedGenerator([replies[0], replies[2], replies[1], replies[3], replies[4]])
    found, _ = await asked(generator, Asking(samples=3, self_correct=True), 3)
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


def test_each_teacher_has_what_it_does_not_set_from_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr("steper_ray.models.resolve_model", str)
    config = load_config(
        None,
        [
            "build.teachers=[{engine: {model: small}, samples: 2, temperature: 0.7}, "
            "{engine: {kind: vllm, model: big, tensor_parallel_size: 4}, num_gpus: 4, engines: 3}]",
            "build.in_flight=7",
            "sampling.max_tokens=9",
        ],
    )
    small, pool = _spec(config, _teachers(config)[0], tmp_path, "c", [])
    questions = write_questions(tmp_path, [QUESTION], 1)
    big, big_pool = _spec(config, _teachers(config)[1], tmp_path, "c", [RolloutSet(small, questions)])
    assert (small.asking.first_sample, big.asking.first_sample) == (0, 2)
    assert (small.source, big.source) == ("small", "big")
    assert (small.sampling.temperature, big.sampling.temperature) == (0.7, 0.0)
    assert (small.asking.samples, big.asking.samples) == (2, 1)
    assert (pool.num_gpus, big_pool.num_gpus) == (0, 4)
    assert (pool.engines, big_pool.engines) == (1, 3)
    assert {one.in_flight for one in (pool, big_pool)} == {7}
    assert {spec.sampling.max_tokens for spec in (small, big)} == {9}
    assert [store.folder for store in big.before] == [small.folder]


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


def two_teachers(tmp_path):
    small = [replace(trajectory(n, answer="Cem" if n == 2 else "Alba"), source="small") for n in (1, 2, 3)]
    corrected = replace(trajectory(3), source="small", attempt=1)
    first = rollout_set(tmp_path, [*small, corrected], until_right=True)
    second = rollout_set(
        tmp_path, [replace(trajectory(1), source="big", sample=1)], before=[first], until_right=True
    )
    return first, second


def test_a_later_teacher_is_asked_what_is_neither_right_nor_owed(tmp_path):
    right, wrong = trajectory(1), trajectory(2, answer="Alba")
    owed = trajectory(3).question
    first = rollout_set(tmp_path, [right, wrong], [(owed, "busy")], size=3, until_right=True)
    second = RolloutSet(replace(first.spec, source="big", before=(first.spec.store,)), first.questions)
    earlier = Earlier.read(second.spec, first.questions.digests[0])
    assert earlier.unwanted == {"q1", "q3"}
    second.spec.store.commit(second.shards[0], [replace(wrong, sample=1)], (), earlier.before)
    assert second.missing() == []
    first.spec.store.commit(first.shards[0], [right, wrong, trajectory(3, answer="Alba")])
    assert second.missing() == [0]
    assert Earlier.read(second.spec, first.questions.digests[0]).unwanted == {"q1"}


def test_what_two_teachers_gave_is_counted_and_read_question_by_question(tmp_path):
    parts = two_teachers(tmp_path)
    report = assemble(Config(run_dir=tmp_path), parts, run=3, skipped=0)
    assert (report.questions, report.questions_kept, report.shards) == (3, 3, 4)
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
