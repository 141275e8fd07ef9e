"""`reasoning.search`: which candidate of a step goes on, which chain is returned, and what it is said to have cost."""

import asyncio

import pytest
from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig
from steper_ray.core.errors import GenerationError
from steper_ray.reasoning import (
    Begun,
    Finished,
    PassagesFound,
    Reasoner,
    ReasoningDelta,
    StepDone,
    StepStarted,
)
from steper_ray.schema import Hit, Passage, Question, Step, StopReason

PASSAGES = [Passage("1", "Alba", "Alba was shot by Bo."), Passage("2", "Bo", "Bo was born in Cem.")]
QUESTION = Question("q", "Where was the director of Alba born?", ("Cem",))
RIGHT, WRONG = "The director of Alba is Bo.", "The director of Alba is Dor."
BORN, END, LOST = "Bo was born in Cem.", "So the answer is: Cem.", "So the answer is: Dor."


def run(replies, *, doubted=(), silent=False, begun=None, max_tokens=None, max_steps=3, **search):
    """A trajectory, its events and the generator, which answers call after call."""
    generator = ScriptedGenerator(replies, CharTokenizer(), doubted=doubted, silent=silent)
    config = ReasoningConfig(stop="fixed", max_steps=max_steps, search={"candidates": 2} | search)
    reasoner = Reasoner(KeywordRetriever(PASSAGES), generator, config, SamplingConfig(), "s")
    reasoner.max_tokens = max_tokens
    events = []
    given = () if begun is None else (begun,)
    trajectory = asyncio.run(reasoner.run(QUESTION, events.append, *given))
    return trajectory, events, generator


def test_the_most_likely_candidate_goes_on_and_all_of_them_are_paid_for():
    found, _, generator = run([WRONG, RIGHT, BORN, BORN, LOST, END], doubted=["Dor"])
    assert found.chain == (RIGHT, BORN, END)
    assert (found.answer, found.stop_reason) == ("Cem", StopReason.ANSWERED)
    assert [step.usage.completion_tokens for step in found.steps] == [
        len(WRONG) + len(RIGHT),
        2 * len(BORN),
        len(LOST) + len(END),
    ]
    assert [step.query for step in found.steps] == [QUESTION.text, RIGHT, BORN]
    assert all(WRONG not in prompt for prompt in generator.prompts)


def test_one_candidate_is_written_as_without_search_and_the_others_draw_numbers_of_their_own():
    _, _, generator = run([RIGHT, WRONG, WRONG, END, END, END], candidates=3, max_steps=2)
    assert generator.temperatures == [0.0, 0.7, 0.7] * 2
    drawn = [seed for seed, t in zip(generator.seeds, generator.temperatures, strict=True) if t]
    assert len({*drawn}) == 4
    assert run([RIGHT, WRONG, WRONG, END, END, END], candidates=3, max_steps=2)[2].seeds == generator.seeds


def test_what_the_passages_hold_goes_before_what_is_more_likely():
    found, _, _ = run([WRONG, RIGHT, END, END], doubted=[RIGHT], score="grounding", max_steps=2)
    assert found.chain[0] == RIGHT


def test_what_most_candidates_say_goes_on_whatever_its_case():
    said = [WRONG, RIGHT, RIGHT.upper()]
    found, _, _ = run([*said, END, END, END], candidates=3, score="agreement", max_steps=2)
    assert found.chain[0] == RIGHT


@pytest.mark.parametrize(("beams", "chain"), [(1, (WRONG, LOST)), (2, (RIGHT, END))])
def test_a_chain_that_begins_worse_may_end_better_where_several_go_on(beams, chain):
    second = [LOST, LOST] if beams == 1 else [LOST, LOST, END, END]
    found, events, generator = run([WRONG, RIGHT, *second], doubted=["is Bo", LOST], beams=beams, max_steps=2)
    assert found.chain == chain
    assert [event.step.reasoning for event in events if isinstance(event, StepDone)] == list(chain)
    assert len(generator.prompts) == 2 + len(second)


def test_a_chain_that_has_ended_stays_until_a_better_one_and_pays_for_what_came_later():
    replies = [END, RIGHT, BORN, BORN, LOST, LOST]
    found, _, _ = run(replies, doubted=[RIGHT, BORN, LOST], beams=2)
    assert found.chain == (END,)
    assert found.steps[0].usage.completion_tokens == sum(map(len, replies))


def test_an_empty_candidate_is_taken_only_where_there_is_no_other():
    found, _, _ = run(["", RIGHT, "", ""], doubted=[RIGHT], max_steps=2)
    assert [step.reasoning for step in found.steps] == [RIGHT, ""]
    assert found.stop_reason is StopReason.EMPTY


def test_the_events_are_those_of_the_steps_that_stay():
    found, events, _ = run([WRONG, RIGHT, BORN, BORN, LOST, END], doubted=["Dor"])
    kinds = [StepStarted, PassagesFound, ReasoningDelta, StepDone]
    assert [type(event) for event in events] == [*kinds * 3, Finished]
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == RIGHT + BORN + END
    assert events[-1].trajectory == found


def test_without_log_probabilities_the_first_candidate_goes_on_and_it_is_said(caplog):
    found, _, _ = run([WRONG, RIGHT, END, LOST], silent=True, max_steps=2)
    assert found.chain == (WRONG, END)
    assert "reasoning.search.score=logprob takes the first candidate" in caplog.text


def test_a_candidate_that_fails_ends_the_question_and_aborts_the_others():
    found, _, generator = run([RIGHT * 10, GenerationError("status 500")])
    assert (found.stop_reason, found.error) == (StopReason.GENERATOR_FAILED, "status 500")
    assert generator.aborted == 1


def test_where_no_tokens_are_left_the_best_chain_so_far_is_the_end():
    found, _, generator = run([WRONG, RIGHT], doubted=["Dor"], max_tokens=len(RIGHT))
    assert found.chain == (RIGHT,)
    assert (found.stop_reason, len(generator.prompts)) == (StopReason.STEP_LIMIT, 2)


def test_it_goes_on_from_the_steps_of_another_engine():
    step = Step(1, QUESTION.text, (Hit(PASSAGES[0], 1.0),), RIGHT)
    found, events, generator = run([BORN, BORN, END, END], begun=Begun((step,), RIGHT))
    assert found.chain == (RIGHT, BORN, END)
    assert [event.step.index for event in events if isinstance(event, StepDone)] == [2, 3]
    assert RIGHT in generator.prompts[0]
