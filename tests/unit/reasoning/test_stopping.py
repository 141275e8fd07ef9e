"""Stopping policies in the loop: what is accepted, what is taken back, and what is asked and answered then."""

import logging
import math

import pytest
from distilled import trajectory as kept_trajectory
from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import Config, ReasoningConfig, SamplingConfig
from steper_ray.core.errors import DataError
from steper_ray.data.examples import make_examples
from steper_ray.data.filtering import drop_reason
from steper_ray.frameworks import FRAMEWORKS, Fact, rewrites
from steper_ray.generation.base import Chunk
from steper_ray.reasoning import Reasoner, StepDone
from steper_ray.reasoning.confidence import TokenSpans
from steper_ray.reasoning.stopping import sentences
from steper_ray.rollouts.spec import at_fixed_steps
from steper_ray.schema import Passage, Question, StopReason

ALBA = Passage("1", "Alba", "Alba was shot by Bo.")
BO = Passage("2", "Bo", "Bo was born in Cem.")
ZOG = Passage("3", "Zog", "Zog is a town.")
QUESTION = Question("q", "Where was the director of Alba born?", ("Cem",))
CHAIN = ["The director of Alba is Bo.", "Bo was born in Cem.", "So the answer is: Cem."]
GUESS = "Bo was born in Zog."
SURE, DOUBTED = math.exp(-0.5), math.exp(-3)


def loop(replies, *, tokenizer=None, hang_at=None, doubted=(), silent=False, **config):
    generator = ScriptedGenerator(replies, tokenizer or CharTokenizer(), hang_at, doubted, silent)
    settings = ReasoningConfig(**{"stop": "confident", "confidence": 0.5} | config)
    retriever = KeywordRetriever([ALBA, BO, ZOG])
    return Reasoner(retriever, generator, settings, SamplingConfig(), "test"), generator


def queries(trajectory):
    return [step.query for step in trajectory.steps]


async def test_a_chain_of_sure_sentences_is_reasoned_to_the_byte_as_with_fixed_steps():
    replies = [" ".join(CHAIN[i:]) for i in range(3)]
    prompts, found = [], []
    for stop in ("fixed", "confident"):
        reasoner, generator = loop(replies, stop=stop)
        found.append(await reasoner.run(QUESTION))
        prompts.append(generator.prompts)
    assert prompts[0] == prompts[1]
    assert found[0].chain == found[1].chain == tuple(CHAIN)
    assert found[0].stop_reason is found[1].stop_reason is StopReason.ANSWERED
    assert [s.confidence for s in found[1].steps] == pytest.approx([SURE] * 3)


async def test_fixed_steps_accept_whatever_is_doubted():
    reasoner, generator = loop(
        [" ".join([CHAIN[0], GUESS, CHAIN[2]])], unit="chain", stop="fixed", doubted=["Zog"]
    )
    trajectory = await reasoner.run(QUESTION)
    assert (trajectory.answer, trajectory.stop_reason) == ("Cem", StopReason.ANSWERED)
    assert trajectory.steps[0].taken_back == ""
    assert trajectory.steps[0].confidence == pytest.approx(DOUBTED)
    assert len(generator.prompts) == 1


async def test_a_doubted_sentence_is_taken_back_and_written_again_with_the_passages_it_finds():
    reasoner, generator = loop([CHAIN[0] + " Bo", GUESS + " So", CHAIN[1] + " So", CHAIN[2]], doubted=["Zog"])
    trajectory = await reasoner.run(QUESTION)
    assert trajectory.chain == (CHAIN[0], "", CHAIN[1], CHAIN[2])
    assert [s.taken_back for s in trajectory.steps] == ["", GUESS, "", ""]
    assert queries(trajectory) == [QUESTION.text, CHAIN[0], GUESS, CHAIN[1]]
    assert [h.passage.id for h in trajectory.steps[2].hits] == ["3"]
    assert GUESS not in generator.prompts[2]
    assert generator.prompts[2].endswith(f"A: {CHAIN[0]}")
    assert "Title: Zog" in generator.prompts[2]
    assert (trajectory.answer, trajectory.stop_reason) == ("Cem", StopReason.ANSWERED)
    assert trajectory.steps[1].usage.completion_tokens > 0  # what is taken back was paid for


async def test_a_doubted_conclusion_asks_in_its_own_words_what_was_not_asked_yet():
    wrong = "So the answer is: Zog."
    reasoner, _ = loop([CHAIN[0] + " So", wrong, CHAIN[1] + " So", CHAIN[2]], doubted=["Zog"])
    trajectory = await reasoner.run(QUESTION)
    assert queries(trajectory) == [QUESTION.text, CHAIN[0], wrong, CHAIN[1]]
    assert trajectory.steps[1].taken_back == wrong
    assert (trajectory.answer, trajectory.stop_reason) == ("Cem", StopReason.ANSWERED)


async def test_unit_chain_keeps_what_stands_before_the_first_doubted_sentence():
    first = " ".join([CHAIN[0], GUESS, "So the answer is: Zog."])
    reasoner, generator = loop([first, " ".join(CHAIN[1:])], unit="chain", doubted=["Zog"])
    trajectory = await reasoner.run(QUESTION)
    assert trajectory.chain == (CHAIN[0], " ".join(CHAIN[1:]))
    assert trajectory.steps[0].taken_back == f"{GUESS} So the answer is: Zog."
    assert queries(trajectory) == [QUESTION.text, GUESS]
    assert generator.prompts[1].endswith(f"A: {CHAIN[0]}")
    assert (trajectory.answer, trajectory.stop_reason) == ("Cem", StopReason.ANSWERED)


async def test_what_is_doubted_twice_at_one_place_is_accepted_and_its_answer_is_unsure():
    reasoner, _ = loop([GUESS + " So", GUESS + " So", "So the answer is: Zog."], doubted=["born in Zog"])
    trajectory = await reasoner.run(QUESTION)
    assert trajectory.chain == ("", GUESS, "So the answer is: Zog.")
    assert (trajectory.answer, trajectory.stop_reason) == ("Zog", StopReason.UNSURE)
    assert drop_reason(trajectory, "exact") == "unsure"


async def test_a_place_is_counted_from_the_chains_beginning_however_much_of_a_piece_was_kept():
    reasoner, _ = loop(
        [f"{CHAIN[0]} {GUESS}", f"{GUESS} So the answer is: Zog."], unit="chain", doubted=["born in Zog"]
    )
    trajectory = await reasoner.run(QUESTION)
    assert [s.taken_back for s in trajectory.steps] == [GUESS, ""]
    assert (trajectory.answer, trajectory.stop_reason) == ("Zog", StopReason.UNSURE)


async def test_at_the_limit_the_best_answer_so_far_is_given():
    better, worse = "So the answer is: Cem.", "So the answer is: Zog."
    reasoner, generator = loop([better, worse], max_steps=2, doubted=["Zog", "Cem"], confidence=0.9)
    values = {better: -1.0, worse: -3.0}
    generator._logprobs = lambda reply: (values[reply],) * len(reply)
    trajectory = await reasoner.run(QUESTION)
    assert [s.taken_back for s in trajectory.steps] == [better, worse]
    assert (trajectory.answer, trajectory.stop_reason) == ("Cem", StopReason.UNSURE)
    values |= {better: -3.0, worse: -1.0}
    generator.prompts.clear()
    trajectory = await reasoner.run(QUESTION)
    assert trajectory.chain == ("", worse)
    assert (trajectory.answer, trajectory.stop_reason) == ("Zog", StopReason.UNSURE)


async def test_an_answer_that_was_taken_back_is_given_where_the_limit_leaves_no_other():
    reasoner, _ = loop(["So the answer is: Zog.", CHAIN[0] + " Bo"], max_steps=2, doubted=["Zog"])
    trajectory = await reasoner.run(QUESTION)
    assert trajectory.chain == ("", CHAIN[0])
    assert (trajectory.answer, trajectory.stop_reason) == ("Zog", StopReason.UNSURE)


async def test_without_any_answer_the_limit_is_the_reason():
    reasoner, _ = loop([GUESS + " So", CHAIN[0] + " Bo"], max_steps=2, doubted=["Zog"])
    trajectory = await reasoner.run(QUESTION)
    assert (trajectory.answer, trajectory.stop_reason) == (CHAIN[0], StopReason.STEP_LIMIT)


@pytest.mark.parametrize("stop", ["confident", "stable"])
async def test_a_deadline_while_another_step_is_spent_gives_the_answer_that_was_taken_back(stop):
    reasoner, _ = loop(
        ["So the answer is: Zog.", "Never"], hang_at=1, deadline_s=0.2, doubted=["Zog"], stop=stop
    )
    trajectory = await reasoner.run(QUESTION)
    assert (trajectory.answer, trajectory.stop_reason) == ("Zog", StopReason.DEADLINE)
    assert trajectory.steps[0].taken_back == "So the answer is: Zog."


async def test_an_engine_without_log_probabilities_is_believed_and_the_log_says_so_once(caplog):
    with caplog.at_level(logging.WARNING):
        reasoner, _ = loop([GUESS + " So", "So the answer is: Zog."] * 2, silent=True)
        reasoner._source = "a silent engine"
        found = [await reasoner.run(QUESTION), await reasoner.run(QUESTION)]
    assert [(t.answer, t.stop_reason) for t in found] == [("Zog", StopReason.ANSWERED)] * 2
    assert found[0].steps[0].confidence is None
    assert [r.message for r in caplog.records if "reasoning.stop" in r.message] == [
        "a silent engine reports no log-probabilities: reasoning.stop=confident behaves like fixed"
    ]


async def test_stable_accepts_an_answer_that_the_next_step_states_again():
    first, second = f"{GUESS} So the answer is: Zog.", f"{CHAIN[1]} So the answer is: Cem."
    reasoner, generator = loop(
        [first, second, f"{CHAIN[1]} So the answer is: the CEM."], unit="chain", stop="stable"
    )
    trajectory = await reasoner.run(QUESTION)
    assert [s.taken_back for s in trajectory.steps] == [first, second, ""]
    assert queries(trajectory) == [QUESTION.text, GUESS, CHAIN[1]]
    assert all(prompt.endswith("\nA:") for prompt in generator.prompts)
    assert (trajectory.answer, trajectory.stop_reason) == ("the CEM", StopReason.ANSWERED)


async def test_stable_goes_by_successive_steps_alone():
    said = "So the answer is: Cem."
    reasoner, _ = loop([said, CHAIN[0] + " Bo", said, said], stop="stable")
    trajectory = await reasoner.run(QUESTION)
    assert len(trajectory.steps) == 4
    assert trajectory.stop_reason is StopReason.ANSWERED


@pytest.mark.parametrize(("first", "last"), [("Zog", "Cem"), ("A", "++")])
async def test_stable_gives_the_last_answer_at_the_limit_as_unsure(first, last):
    said = [f"So the answer is: {answer}." for answer in (first, last)]
    reasoner, _ = loop(said, stop="stable", max_steps=2)
    trajectory = await reasoner.run(QUESTION)
    assert (trajectory.answer, trajectory.stop_reason) == (last, StopReason.UNSURE)


async def test_a_doubted_follow_up_of_self_ask_asks_its_own_question():
    first = "\nFollow up: Who shot Alba?\n"
    doubted = "\nIntermediate answer: Zog\nFollow up: Where was Zog born?\n"
    last = "\nIntermediate answer: Cem\nSo the final answer is: Cem\n"
    reasoner, _ = loop([first, doubted, last], framework="self_ask", doubted=["Zog"])
    trajectory = await reasoner.run(QUESTION)
    assert queries(trajectory) == [QUESTION.text, "Who shot Alba?", "Where was Zog born?"]
    assert trajectory.chain == (first.strip(), "", last.strip())
    assert (trajectory.answer, trajectory.stop_reason) == ("Cem", StopReason.ANSWERED)


async def test_the_steps_of_a_stream_are_those_of_the_trajectory():
    reasoner, _ = loop([GUESS + " So", CHAIN[1] + " So", CHAIN[2]], doubted=["Zog"])
    events = [event async for event in reasoner.stream(QUESTION)]
    steps = tuple(event.step for event in events if isinstance(event, StepDone))
    assert steps == events[-1].trajectory.steps
    assert [s.taken_back for s in steps] == [GUESS, "", ""]


async def test_a_request_may_choose_its_own_policy():
    reasoner, _ = loop(["So the answer is: Zog."], doubted=["Zog"])
    reasoner.config = reasoner.config.model_copy(update={"stop": "fixed"})
    assert (await reasoner.run(QUESTION)).stop_reason is StopReason.ANSWERED


def test_a_sentence_is_as_sure_as_its_least_likely_token_and_blanks_do_not_count():
    heard = TokenSpans()
    for text, value in (
        (" ", -9.0),
        ("Bo ", -0.1),
        ("is in", -0.7),
        (" Cem.", -0.2),
        (" ", -9.0),
        ("So", -2.0),
    ):
        heard.add(Chunk(text, (1,), (value,)))
    heard.add(Chunk("", (2,), (-9.0,), "stop"))
    assert heard.least(["Bo is in Cem.", "So"]) == pytest.approx([math.exp(-0.7), math.exp(-2)])


def test_tokens_that_come_in_one_chunk_are_told_apart_by_the_tokenizer():
    text, values = "Bo. So", (-0.1, -0.1, -0.1, -9.0, -2.0, -0.1)
    chunk = Chunk(text, tuple(map(ord, text)), values)
    for tokenizer, least in ((CharTokenizer(), -0.1), (None, -9.0)):
        heard = TokenSpans(tokenizer)
        heard.add(chunk)
        assert heard.least(["Bo."])[0] == pytest.approx(math.exp(least))


def test_a_token_whose_text_comes_later_counts_for_that_text():
    heard = TokenSpans()
    heard.add(Chunk("", (1,), (-3.0,)))
    heard.add(Chunk("\u00e9t\u00e9.", (2,), (-0.1,)))
    assert heard.least(["\u00e9t\u00e9."]) == pytest.approx([math.exp(-3)])


def test_words_that_a_framework_put_otherwise_are_as_sure_as_the_whole_text():
    heard = TokenSpans()
    for text, value in (("action 1: ", -0.1), ("finish[Cem]", -3.0)):
        heard.add(Chunk(text, (1,), (value,)))
    assert heard.least(["Action: Finish[Cem]"]) == pytest.approx([math.exp(-3)])


def test_of_equal_sentences_each_has_its_own_tokens():
    heard = TokenSpans()
    for value in (-0.1, -3.0):
        heard.add(Chunk("Bo is. ", (1,), (value,)))
    assert heard.least(["Bo is.", "Bo is."]) == pytest.approx([math.exp(-0.1), math.exp(-3)])


@pytest.mark.parametrize("framework", [name for name in FRAMEWORKS if not rewrites(FRAMEWORKS[name])])
def test_a_piece_is_cut_into_the_steps_of_its_framework(framework):
    facts = (Fact("Who shot Alba?", "Bo", CHAIN[0]), Fact("Where was Bo born?", "Cem", CHAIN[1]))
    chain = FRAMEWORKS[framework].gold_chain(facts, "Cem")
    joiner = " " if framework == "ircot" else "\n"
    assert tuple(sentences(FRAMEWORKS[framework], joiner.join(chain))) == chain


async def test_no_example_is_made_of_a_chain_in_which_something_was_taken_back():
    reasoner, _ = loop([GUESS + " So", CHAIN[1] + " So", CHAIN[2]], doubted=["Zog"])
    with pytest.raises(DataError, match=r"trajectory 'q'.*reasoning\.stop=fixed"):
        make_examples(await reasoner.run(QUESTION))
    assert make_examples(kept_trajectory())


def test_a_build_runs_at_fixed_steps_whatever_answers_questions():
    config = Config(reasoning={"stop": "confident", "max_steps": 3})
    assert at_fixed_steps(config).reasoning == ReasoningConfig(stop="fixed", max_steps=3)
