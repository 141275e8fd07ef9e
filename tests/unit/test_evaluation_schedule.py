"""Which chunk runs next: every chunk once, few model loads, dead engines."""

import pytest

from steper_ray.errors import EngineDeadError
from steper_ray.evaluation.schedule import MAX_ATTEMPTS, Answered, Chunk, EvalJob, Schedule

A = EvalJob("a", "model-a", "sentence")
A_CHAIN = EvalJob("a", "model-a", "chain")
B = EvalJob("b", "model-b", "sentence")


def answers(chunk):
    return [Answered(f"{chunk.job.name}{number}", 0) for number in range(chunk.start, chunk.stop)]


def test_every_question_of_every_job_is_handed_out_once():
    schedule = Schedule([A, B], n_questions=5, chunk_size=2)
    taken = []
    while (chunk := schedule.take(None)) is not None:
        taken.append(chunk)
        schedule.complete(chunk, answers(chunk))
    assert sorted((c.job.name, c.start, c.stop) for c in taken) == [
        ("a", 0, 2),
        ("a", 2, 4),
        ("a", 4, 5),
        ("b", 0, 2),
        ("b", 2, 4),
        ("b", 4, 5),
    ]
    assert schedule.finished


def test_an_engine_goes_on_with_the_model_it_has_loaded():
    schedule = Schedule([A, B, A_CHAIN], n_questions=1, chunk_size=1)
    assert schedule.take("model-b").job == B
    assert schedule.take("model-a").job == A
    assert schedule.take("model-a").job == A_CHAIN
    assert schedule.take("model-a") is None


def test_another_engine_takes_a_model_that_nobody_runs():
    schedule = Schedule([A, A_CHAIN, B], n_questions=1, chunk_size=1)
    assert schedule.take(None).job == A
    assert schedule.take(None).job == B
    assert schedule.take("model-b").job == A_CHAIN  # rather than stand idle


def test_a_job_is_whole_in_the_order_of_the_questions_whatever_came_first():
    schedule = Schedule([A], n_questions=3, chunk_size=2)
    first, second = schedule.take(None), schedule.take(None)
    assert schedule.complete(second, answers(second)) is None
    whole = schedule.complete(first, answers(first))
    assert [one.trajectory for one in whole] == ["a0", "a1", "a2"]


def test_it_is_not_finished_while_a_chunk_is_under_way():
    schedule = Schedule([A], n_questions=1, chunk_size=1)
    chunk = schedule.take(None)
    assert schedule.n_waiting == 0
    assert not schedule.finished
    schedule.give_back(chunk, RuntimeError("killed"))
    assert schedule.take(None) == chunk


def test_a_chunk_that_kills_every_engine_ends_the_evaluation_and_is_named():
    schedule = Schedule([A], n_questions=4, chunk_size=2)
    for _ in range(MAX_ATTEMPTS - 1):
        schedule.give_back(schedule.take(None), RuntimeError("boom"))
    with pytest.raises(
        EngineDeadError, match=r"'a' \(sentence\): the engine died 3 times on questions 1 to 2: boom"
    ):
        schedule.give_back(schedule.take(None), RuntimeError("boom"))


def test_chunks_compare_by_value():
    assert Chunk(A, 0, 2) == Chunk(EvalJob("a", "model-a", "sentence"), 0, 2)
