"""What a run says of its cluster, and how it ends without one. No Ray is started."""

import io
import threading

import pytest

from steper_ray.cli.main import _guarded
from steper_ray.cluster import Need, lacking
from steper_ray.core.errors import EngineDeadError, OwedError
from steper_ray.core.progress import Bar
from steper_ray.rollouts import run
from steper_ray.rollouts.progress import Now, Progress
from steper_ray.rollouts.set import OwedReport
from steper_ray.rollouts.work import Work


def nodes(*resources, alive=True):
    return [{"NodeID": str(n), "Alive": alive, "Resources": own} for n, own in enumerate(resources)]


@pytest.mark.parametrize(
    ("count", "cpus", "gpus", "said"),
    [
        (5, 2.0, 0.0, ""),
        (1, 0.0, 0.0, ""),
        (1, 64.0, 0.0, "x.count=1 of 64 CPUs (x.cpus; the largest node has 8) each; there is room for 0"),
        (1, 1.0, 4.0, "4 GPUs (x.gpus; the largest node has 2)"),
        # Each of them is somewhere, but no node has both.
        (1, 4.0, 2.0, "4 CPUs (x.cpus; the largest node has 8) and 2 GPUs"),
        (6, 2.0, 0.0, "x.count=6 of 2 CPUs (x.cpus; the largest node has 8) each; there is room for 5"),
    ],
)
def test_what_the_nodes_of_the_cluster_lack_is_said(monkeypatch, count, cpus, gpus, said):
    monkeypatch.setattr(run.ray, "nodes", lambda: nodes({"CPU": 8.0}, {"CPU": 2.0, "GPU": 2.0}))
    found = lacking(Need(count, cpus, gpus, ("x.count", "x.cpus", "x.gpus")))
    assert said in found
    assert bool(found) == bool(said)


class Context:
    def get_node_id(self):
        return "0"


def test_a_run_ends_when_the_node_of_its_driver_is_gone(monkeypatch):
    monkeypatch.setattr(run, "_ALIVE_S", 0.01)
    monkeypatch.setattr(run.ray, "get_runtime_context", Context)
    monkeypatch.setattr(run.ray, "nodes", lambda: nodes({}, alive=False))
    hangs = threading.Event()

    def rows():
        yield {"row": 1}
        hangs.wait()  # as a reader of a dead raylet does

    found = run._alive(rows)
    assert next(found) == {"row": 1}
    with pytest.raises(
        EngineDeadError, match=r"lost this driver's node.*start Ray again and run the same command"
    ):
        next(found)
    hangs.set()


def test_an_error_of_the_reader_reaches_the_run(monkeypatch):
    monkeypatch.setattr(run.ray, "get_runtime_context", Context)

    def rows():
        yield 1
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(run._alive(rows))


def test_more_owed_than_allowed_is_an_error_that_says_how_to_continue_and_fewer_a_warning(caplog):
    report = OwedReport(200, {"1:q1": "busy", "1:q2": "busy", "1:q3": "silent"})
    with pytest.raises(
        OwedError, match=r"3 of 200 questions are owed: busy \(2\); silent \(1\).*the same command"
    ):
        run.check_owed(report, 0.01, "build", "questions 200")
    run.check_owed(report, 0.02, "build", "")
    assert "3 of 200 questions are owed" in caplog.text
    caplog.clear()
    run.check_owed(OwedReport(200, {}), 0.0, "build", "")
    assert not caplog.text


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_shows_what_is_in_flight_and_not_committed(stream, monkeypatch):
    monkeypatch.setattr("steper_ray.rollouts.progress._SECONDS_BETWEEN_LOOKS", 0.001)
    looks, ticks = threading.Semaphore(0), iter(range(0, 10**6, 20))

    def look():
        looks.release()
        return Now(3, Work(questions=2, right=1, steps=5))

    with Progress(Bar("trajectories", "questions", 10, 4, stream=stream, clock=lambda: next(ticks)), 4, look):
        for _ in range(3):
            assert looks.acquire(timeout=30)
    assert "6 of 10 questions (60 %)" in stream.getvalue() or "6/10" in stream.getvalue()
    assert "3 in flight, 1 right" in stream.getvalue()


def test_lines_come_now_and_then_and_at_the_end_and_a_silent_bar_says_nothing():
    out, times = io.StringIO(), iter([0.0, 1.0, 12.0, 12.0, 13.0, 13.0])
    bar = Bar("build", "questions", 100, 20, stream=out, clock=lambda: next(times))
    for done in (30, 60, 100):
        bar.show(done, "1 right")
    assert out.getvalue().splitlines() == [
        "build: 60 of 100 questions (60 %), 3.3/s, 12 s left; 1 right",
        "build: 100 of 100 questions (100 %), 6.2/s, 0 s left; 1 right",
    ]
    silent = io.StringIO()
    Bar("build", "questions", 2, stream=silent, shown=False).show(2)
    assert silent.getvalue() == ""


def test_a_command_that_owes_prints_what_it_came_to_and_exits_with_75(capsys):
    def command():
        raise OwedError("3 of 200 questions are owed", "questions   200, kept 197")

    with pytest.raises(SystemExit) as ended:
        _guarded(command)
    assert ended.value.code == 75
    said = capsys.readouterr()
    assert said.out == "questions   200, kept 197\n"
    assert said.err == "error: 3 of 200 questions are owed\n"
