"""`reasoning.escalate` in the service: a larger model beside the student, counted, and no loss when it dies."""

from local_endpoint import CHAIN, PASSAGES, QUESTION, client, error_of, events_of
from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig, ServeConfig
from steper_ray.core.errors import EngineDeadError
from steper_ray.serving.engine import ReasonEngine

DOUBTED = "The director of Alba is Dor."


def engine(larger, died=lambda error: None):
    """The student doubts its first sentence."""
    student = ScriptedGenerator([DOUBTED, *CHAIN[1:]], CharTokenizer(), doubted=["Dor"])
    escalate = {"engine": {"kind": "openai", "model": "large", "url": "http://nowhere/v1"}, "below": 0.3}
    return ReasonEngine(
        KeywordRetriever(PASSAGES),
        {"test": student},
        ReasoningConfig(escalate=escalate),
        SamplingConfig(),
        ServeConfig(),
        larger=larger,
        died=died,
    )


def test_what_the_student_doubts_is_answered_in_the_larger_models_words_and_counted():
    reply = (
        client(engine(ScriptedGenerator([CHAIN[0]]))).post("/v1/reason", json={"question": QUESTION}).json()
    )
    assert [step["reasoning"] for step in reply["steps"]] == CHAIN
    assert [step["usage"]["larger_tokens"] for step in reply["steps"]] == [len(CHAIN[0]), 0, 0]
    assert reply["usage"]["larger_tokens"] == len(CHAIN[0])
    assert reply["usage"]["completion_tokens"] > len(CHAIN[0])


def test_in_a_stream_the_end_of_a_step_has_the_larger_models_words():
    streamed = client(engine(ScriptedGenerator([CHAIN[0]]))).post(
        "/v1/reason", json={"question": QUESTION, "stream": True}
    )
    events = events_of(streamed)
    assert [body["reasoning"] for name, body in events if name == "step_done"] == CHAIN
    assert "Dor" in "".join(body["text"] for name, body in events if name == "delta")
    assert events[-1][1]["answer"] == "Cem"


def test_a_larger_model_that_dies_ends_the_engine_as_the_student_would():
    died = []
    reply = client(engine(ScriptedGenerator([EngineDeadError("gone")]), died.append)).post(
        "/v1/reason", json={"question": QUESTION}
    )
    assert error_of(reply)[:2] == (503, "engine_unavailable")
    assert [str(error) for error in died] == ["gone"]
