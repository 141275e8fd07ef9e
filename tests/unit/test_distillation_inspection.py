"""`steper inspect`: what a built data set holds, in the terminal and as a page."""

import dataclasses
from collections import Counter

import pytest
from distilled import assembled, trajectory, with_usage
from typer.testing import CliRunner

from steper_ray.cli import app
from steper_ray.distillation.inspection import DataSet, inspect, spread
from steper_ray.distillation.inspection_text import page, plain, summary
from steper_ray.distillation.inspection_text import trajectory as show
from steper_ray.errors import DataError
from steper_ray.schema import Passage

TRAJECTORIES = [trajectory(1), trajectory(2, answer="Bo"), trajectory(3, hops=3), trajectory(4)]


@pytest.fixture
def data(tmp_path):
    assembled(tmp_path, [with_usage(t) for t in TRAJECTORIES])
    return DataSet(tmp_path)


def test_everything_is_counted_once(data):
    found = inspect(data)
    assert found.fates == {"kept": 3, "wrong_answer": 1}
    assert found.hops == {2: (3, 2), 3: (1, 1)}
    assert found.steps_kept == {2: 3}
    assert found.passages == {2: 3}
    assert found.words == {3: 3, 5: 3}
    assert found.repeated_questions == 0


def test_the_cost_of_each_step_and_what_the_prefix_cache_saved(data):
    first, second = inspect(data).costs
    assert (first.n, first.prompt_tokens, first.completion_tokens, first.cached) == (4, 400, 40, 0.0)
    assert (second.n, second.prompt_tokens, second.cached) == (4, 800, 0.75)


def test_a_question_that_comes_twice_under_two_ids_is_told(tmp_path):
    twin = trajectory(2)
    twin = dataclasses.replace(twin, question=dataclasses.replace(twin.question, text="the QUESTION 1!"))
    assembled(tmp_path, [trajectory(1), twin])
    found = inspect(DataSet(tmp_path))
    assert found.repeated_questions == 1
    assert "1 of 2 questions have a text that came before" in plain(summary(DataSet(tmp_path), found))


def test_the_summary_says_what_was_kept_and_why_not(data):
    told = " ".join(plain(summary(data, inspect(data))).split())
    assert "kept 3 75.0%" in told
    assert "wrong answer 1 25.0%" in told
    assert "75.0% 80" in told  # cached, written


def test_text_of_the_data_is_shown_as_it_is(tmp_path):
    odd = trajectory(1, pieces=["[red]A[/red] <b>.", "So the answer is: Cem."])
    hit = dataclasses.replace(odd.steps[0].hits[0], passage=Passage("x", "<script>", "[bold]"))
    odd = dataclasses.replace(odd, steps=(dataclasses.replace(odd.steps[0], hits=(hit,)), odd.steps[1]))
    assembled(tmp_path, [odd])
    data = DataSet(tmp_path)
    (seen,) = data
    assert "[red]A[/red] <b>." in plain(show(seen))
    assert "<script>  [bold]" in plain(show(seen))
    page(data, inspect(data), data, tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;" in written
    assert "<script" not in written


def test_the_command_pages_through_those_that_were_asked_for(data):
    run = CliRunner().invoke(
        app, ["inspect", str(data.folder.parent), "--show", "5", "--fate", "wrong_answer"]
    )
    assert run.exit_code == 0
    assert "Question 2?" in run.stdout
    assert "Question 1?" not in run.stdout
    run = CliRunner().invoke(app, ["inspect", str(data.folder.parent), "--question", "q3"])
    assert "Question 3?" in run.stdout
    assert "Question 2?" not in run.stdout


def test_a_run_that_was_not_built_is_an_error_with_the_fix(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: no data set here: run the build stage"):
        DataSet(tmp_path)


def test_a_spread_is_median_95th_percentile_and_most():
    assert spread(Counter()) is None
    assert spread(Counter([7])) == (7, 7, 7)
    assert spread(Counter(range(101))) == (50, 95, 100)
