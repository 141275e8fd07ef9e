"""`reasoning.escalate`: what the model doubts is written by a larger one, and counted as such."""

import asyncio

from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig
from steper_ray.reasoning import Reasoner, ReasoningDelta
from steper_ray.schema import Passage, Question, StopReason

PASSAGES = [Passage("p1", "Al", "Al is Bo."), Passage("p2", "Bo", "Bo is Cem.")]
QUESTION = Question("q", "What is Al?", ("Cem",))


def run(student, larger, *, below=0.3, unit="sentence"):
    """A trajectory, and the text that was streamed."""
    escalate = {"engine": {"kind": "openai", "model": "large", "url": "http://nowhere/v1"}, "below": below}
    config = ReasoningConfig(stop="fixed", unit=unit, k=2, max_steps=3, escalate=escalate)
    reasoner = Reasoner(KeywordRetriever(PASSAGES), student, config, SamplingConfig(), "s", larger=larger)
    said = []
    trajectory = asyncio.run(reasoner.run(QUESTION, said.append))
    return trajectory, "".join(event.text for event in said if isinstance(event, ReasoningDelta))


def test_a_doubted_step_is_written_again_and_the_next_one_goes_on_from_it():
    student = ScriptedGenerator(["Al is Dor.", "So the answer is: Cem."], CharTokenizer(), doubted=["Dor"])
    larger = ScriptedGenerator(["Al is Bo."])
    found, streamed = run(student, larger)
    assert found.chain == ("Al is Bo.", "So the answer is: Cem.")
    assert (found.answer, found.stop_reason) == ("Cem", StopReason.ANSWERED)
    assert [step.usage.larger_tokens for step in found.steps] == [len("Al is Bo."), 0]
    assert found.steps[0].usage.completion_tokens == len("Al is Dor.") + len("Al is Bo.")
    assert all(step.taken_back == "" for step in found.steps)  # it is no step that was taken back
    assert "Al is Bo." in student.prompts[1]
    assert "Dor" not in student.prompts[1]
    assert larger.prompts == [student.prompts[0]]  # the same prompt, as text
    assert "Bo" not in streamed  # the step's end holds what counts


def test_a_sure_step_costs_no_larger_model_and_one_without_log_probabilities_says_so(caplog):
    sure = ScriptedGenerator(["So the answer is: Cem."], CharTokenizer())
    found, _ = run(sure, ScriptedGenerator([]))
    assert found.steps[0].usage.larger_tokens == 0
    silent = ScriptedGenerator(["So the answer is: Cem."], CharTokenizer(), silent=True)
    found, _ = run(silent, ScriptedGenerator([]))
    assert found.answer == "Cem"
    assert "no log-probabilities: reasoning.escalate asks no larger model" in caplog.text


def test_the_least_sure_sentence_of_a_piece_counts():
    pieces = ["Al is Bo. Bo is Dor. So the answer is: Dor."]
    student = ScriptedGenerator(pieces, CharTokenizer(), doubted=["Bo is Dor."])
    found, _ = run(student, ScriptedGenerator(["Al is Bo. Bo is Cem. So the answer is: Cem."]), unit="chain")
    assert found.answer == "Cem"
    found, _ = run(
        ScriptedGenerator(pieces, CharTokenizer(), doubted=["Dor"]),
        ScriptedGenerator([]),
        below=0.01,
        unit="chain",
    )
    assert found.answer == "Dor"
