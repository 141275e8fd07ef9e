"""A trajectory that loses its engine after any event continues elsewhere to the same end; nothing is sent twice."""

import asyncio
from dataclasses import replace

import pytest
from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig
from steper_ray.reasoning import (
    Finished,
    PassagesFound,
    Reasoner,
    ReasoningDelta,
    SentEvents,
    StepDone,
    StepStarted,
)
from steper_ray.schema import Passage, Question, Step

PASSAGES = [Passage("1", "Alba", "Alba was shot by Bo."), Passage("2", "Bo", "Bo was born in Cem.")]
QUESTION = Question("q", "Where was the director of Alba born?", ("Cem",))
WRITTEN = [
    "The director of Alba is Bo.",
    "Bo was born in Dor.",
    "Bo was born in Cem.",
    "So the answer is: Cem.",
]
ROUNDS = [f"Alba was made by Bo. So the answer is: {answer}." for answer in ("Dor", "Bo", "Cem")]
#: The replies step by step, what is doubted, and the settings.
CASES = {
    "fixed": (WRITTEN, (), {"stop": "fixed"}),
    "taken back": (WRITTEN, ["Dor"], {"stop": "confident", "confidence": 0.3}),
    "doubted twice": (
        [WRITTEN[0], WRITTEN[1], WRITTEN[1], WRITTEN[3]],
        ["Dor"],
        {"stop": "confident", "confidence": 0.3},
    ),
    "doubted at two places": (
        [*WRITTEN[:3], "Cem is in Dor.", WRITTEN[3]],
        ["Dor"],
        {"stop": "confident", "confidence": 0.3},
    ),
    "the best of doubted answers": (
        [WRITTEN[3], WRITTEN[2], "So the answer is: Dor."],
        ["Dor"],
        {"stop": "confident", "confidence": 0.9, "max_steps": 3},
    ),
    "stable": ([WRITTEN[0], WRITTEN[3], WRITTEN[3]], (), {"stop": "stable"}),
    "rounds": (ROUNDS, (), {"framework": "iter_retgen", "max_steps": 3, "k": 1}),
    "chain": ([" ".join(WRITTEN)], (), {"unit": "chain"}),
}


def events_of(case, sent):
    """The events of an engine that goes on from what was sent."""
    replies, doubted, settings = CASES[case]
    begun = sent.begun()
    generator = ScriptedGenerator(replies[len(begun.steps) :], CharTokenizer(), doubted=doubted)
    reasoner = Reasoner(KeywordRetriever(PASSAGES), generator, ReasoningConfig(**settings), SamplingConfig())
    events = []
    asyncio.run(reasoner.run(QUESTION, events.append, begun))
    return events


def timeless(event):
    match event:
        case PassagesFound():
            return replace(event, seconds=0.0)
        case StepDone(step):
            return StepDone(_timeless(step))
        case Finished(trajectory):
            return Finished(replace(trajectory, steps=tuple(map(_timeless, trajectory.steps))))
    return event


def _timeless(step):
    return replace(step, retrieval_seconds=0.0, generation_seconds=0.0)


@pytest.mark.parametrize("case", CASES)
def test_after_any_event_another_engine_goes_on_to_the_same_end(case):
    whole = [timeless(event) for event in events_of(case, SentEvents())]
    for cut in range(len(whole)):
        sent = SentEvents()
        seen = [timeless(sent.unsent(event)) for event in whole[:cut]]
        rest = [new for event in events_of(case, sent) if (new := sent.unsent(event)) is not None]
        assert seen + [timeless(event) for event in rest] == whole


def test_steps_that_were_told_are_not_written_again():
    sent = SentEvents()
    for event in events_of("fixed", SentEvents())[:-2]:  # up to the text of the last step
        sent.unsent(event)
    again = events_of("fixed", sent)
    assert [event.step.index for event in again if isinstance(event, StepDone)] == [len(WRITTEN)]


def test_text_that_another_engine_writes_otherwise_is_left_to_the_end_of_its_step():
    sent = SentEvents()
    done = StepDone(Step(1, "q", (), "Alba is by Bo."))
    for event in (StepStarted(1, "q"), ReasoningDelta(1, "Alba was")):
        assert sent.unsent(event) == event
    assert sent.unsent(StepStarted(1, "q")) is None
    for text in ("Alba ", "is by", " Bo."):
        assert sent.unsent(ReasoningDelta(1, text)) is None
    assert sent.unsent(done) == done
