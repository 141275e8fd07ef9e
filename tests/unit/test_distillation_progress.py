"""How far a build is: lines and a bar, and what engines have noted but not committed."""

import io
import itertools
import json
import threading

import pytest
from distilled import trajectory, with_usage

from steper_ray.distillation.engine_log import EngineLog
from steper_ray.distillation.live import Live
from steper_ray.distillation.progress import Progress, Work


def test_progress_off_a_terminal_writes_lines_now_and_then_and_at_the_end():
    out, times = io.StringIO(), iter([0.0, 1.0, 12.0, 13.0])
    work = Work.of(10, [with_usage(trajectory(1)), trajectory(2, reason="step_limit")], "exact")
    with Progress(100, 20, stream=out, clock=lambda: next(times)) as progress:
        for part in (work, Work(30), Work(40)):
            progress.advance(part)
    assert out.getvalue().splitlines() == [
        "trajectories: 60 of 100 questions (60 %), 3.3/s, 12 s left; "
        "1 right, 0.3 steps/s, 2 tokens/s, 50 % of prompts cached",
        "trajectories: 100 of 100 questions (100 %), 6.2/s, 0 s left; "
        "1 right, 0.3 steps/s, 2 tokens/s, 50 % of prompts cached",
    ]


@pytest.fixture
def log(tmp_path):
    return EngineLog(tmp_path / "engines", limit=9)


def test_what_is_in_flight_and_what_is_done_but_not_committed_is_told(log):
    notes, _ = log.started()
    live = Live(log.folder, ["q1", "q2", "q3"])
    for key in ("q1", "judge q1", "q2"):
        notes.asked(key, alone=False)
    live.read()
    assert (live.in_flight, live.work) == (2, Work())
    notes.done("q1", (1, 3, 30, 20, 10))
    live.read()
    assert (live.in_flight, live.work) == (1, Work(1, 1, 3, 30, 20, 10))
    live.committed(["q1", "q2"])
    notes.done("q2", (0, 1, 1, 1, 1))
    live.read()
    assert (live.in_flight, live.work) == (0, Work())


def test_what_a_dead_engine_left_is_in_flight_until_it_is_done_and_counts_once(log):
    first, _ = log.started()
    live = Live(log.folder, ["q1", "q2"])
    for key in ("q1", "q2"):
        first.asked(key, alone=False)
    first.done("q1", (1, 2, 2, 2, 2))
    live.read()
    second, _ = log.started()
    live.read()
    assert live.in_flight == 1
    for key in ("q1", "q2"):
        second.asked(key, alone=True)
        second.done(key, (1, 2, 2, 2, 2))
    live.read()
    assert (live.in_flight, live.work) == (0, Work(2, 2, 4, 4, 4, 4))


def test_a_question_of_several_samples_is_done_with_its_last_and_right_once(log):
    notes, _ = log.started()
    live = Live(log.folder, ["q"], groups=2)
    notes.asked("q", alone=False)
    notes.done("q", (1, 2, 0, 0, 0))
    live.read()
    assert live.work == Work(0, 1, 2)
    notes.asked("q", alone=False)
    notes.done("q", (1, 3, 0, 0, 0))
    live.read()
    assert live.work == Work(1, 1, 5)


def test_half_a_line_is_read_when_it_is_whole(log):
    log.started()
    live = Live(log.folder, ["q"])
    (life,) = log.folder.iterdir()
    line = json.dumps(["asked", "q"]).encode() + b"\n"
    for part, in_flight in ((line[:5], 0), (line[5:], 1)):
        with life.open("ab") as stream:
            stream.write(part)
        live.read()
        assert live.in_flight == in_flight


class Watched:
    in_flight, work = 3, Work(2, 1, 5)

    def __init__(self):
        self.looks = threading.Semaphore(0)

    def read(self):
        self.looks.release()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_shows_what_is_watched_while_nothing_is_committed(stream, monkeypatch):
    monkeypatch.setattr("steper_ray.distillation.progress._SECONDS_BETWEEN_LOOKS", 0.01)
    watched, clock = Watched(), itertools.count(step=20.0)
    with Progress(10, 4, watched, stream, lambda: next(clock)):
        for _ in range(3):
            assert watched.looks.acquire(timeout=30)
    assert "6 of 10 questions (60 %)" in stream.getvalue() or "6/10" in stream.getvalue()
    assert "3 in flight, 1 right" in stream.getvalue()
