"""`steper inspect`: what a built data set holds, in the terminal and for machines."""

import dataclasses
import json
from collections import Counter

import pytest
from distilled import assembled, rollout_set, trajectory, with_usage
from typer.testing import CliRunner

from steper_ray.cli.main import app
from steper_ray.config import Config
from steper_ray.core.errors import DataError
from steper_ray.data.assemble import assemble
from steper_ray.data.inspection import DataSet, inspect
from steper_ray.data.inspection_text import plain, summary
from steper_ray.data.inspection_text import trajectory as show
from steper_ray.data.measures import StepCost, spread
from steper_ray.data.seal import seal
from steper_ray.schema import SCHEMA_VERSION, Ability, Passage

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
    assert (found.repeats.texts, found.repeats.chains) == (0, 2)
    assert found.sources == {"test": (4, 3)}


def test_the_cost_of_each_step_and_what_the_prefix_cache_saved(data):
    first, second = inspect(data).costs
    assert (first.n, first.prompt_tokens, first.completion_tokens, first.cached) == (4, 400, 40, 0.0)
    assert (second.n, second.prompt_tokens, second.cached) == (4, 800, 0.75)


def test_examples_are_as_long_as_the_build_made_them(data):
    found = inspect(data)
    first, last = found.lengths[Ability.INITIALIZATION], found.lengths[Ability.AGGREGATION]
    assert set(found.lengths) == {Ability.INITIALIZATION, Ability.AGGREGATION}
    assert (first.n, first.passages, first.prompt_words, first.target_words) == (3, {1: 3}, {5: 3}, {3: 3})
    assert (last.passages, last.prompt_words, last.target_words) == ({2: 3}, {8: 3}, {8: 3})
    assert (last.tokens_read, last.tokens_written) == ({200: 3}, {30: 3})


def test_tokens_that_no_engine_told_are_not_counted_as_none(tmp_path):
    assembled(tmp_path, [trajectory(1)])
    last = inspect(DataSet(tmp_path)).lengths[Ability.AGGREGATION]
    assert (last.n, last.tokens_read, last.tokens_written) == (1, {}, {})


def test_what_the_engine_was_kept_busy_with(data):
    cost = inspect(data).cost
    assert (cost.prompt_tokens, cost.fresh_tokens, cost.completion_tokens) == (1200, 600, 120)
    assert cost.generation_seconds == pytest.approx(4 * 0.3)
    slow = StepCost(retrieval_seconds=1.0, generation_seconds=3.0)
    assert (slow.retrieval_share, slow.engine_seconds(8)) == (0.25, 0.5)
    told = " ".join(plain(summary(data, inspect(data))).split())
    assert "read 1,200 tokens: 600 fresh, 600 from the prefix cache; wrote 120" in told
    assert (
        "waited 1.2 s for generation, 0.0 s for retrieval (0.0%): at least 0.3 s of one engine, with always 4 "
        in told
    )


def test_the_object_for_machines_holds_the_figures_and_what_was_asked_for(data):
    arguments = ["inspect", str(data.folder.parent), "--json", "--question", "q2"]
    told = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (told["questions"], told["fates"]) == (4, {"kept": 3, "wrong_answer": 1})
    assert told["hops"][1] == {"hops": 3, "trajectories": 1, "kept": 1}
    assert told["examples"]["aggregation"]["prompt_words"] == {"median": 8, "p95": 8, "most": 8}
    assert told["examples"]["expansion"] == {"n": 0} | dict.fromkeys(
        ["passages", "prompt_words", "target_words", "tokens_read", "tokens_written"]
    )
    assert (told["cost"]["fresh_tokens"], told["steps"][1]["cached_tokens"]) == (600, 600)
    assert told["repeats"] == {"texts": 0, "chains": 2}
    (shown,) = told["shown"]
    assert (shown["id"], shown["fate"], shown["trajectory"]["answer"]) == ("q2", "wrong_answer", "Bo")


def test_a_question_that_comes_twice_under_two_ids_is_told(tmp_path):
    twin = trajectory(2)
    twin = dataclasses.replace(twin, question=dataclasses.replace(twin.question, text="the QUESTION 1!"))
    assembled(tmp_path, [trajectory(1), twin])
    found = inspect(DataSet(tmp_path))
    assert found.repeats.texts == 1
    assert "repeated: the text of 1 of 2 questions, and 1 of 2 kept chains" in " ".join(
        plain(summary(DataSet(tmp_path), found)).split()
    )


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
    with pytest.raises(DataError, match=r"report\.json: no data set here: run the build stage"):
        DataSet(tmp_path)


def test_data_of_another_schema_is_an_error_with_the_fix(tmp_path):
    assembled(tmp_path, [trajectory(1)])
    path = tmp_path / "data" / "manifest.json"
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 2'))
    seal(tmp_path / "data", "", {})
    with pytest.raises(DataError, match=r"manifest\.json: written in version 2 .*build again"):
        DataSet(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "dropped.jsonl", "report.json"])
def test_a_flipped_bit_of_what_is_shown_is_named_and_a_build_writes_it_again(tmp_path, name):
    found = rollout_set(tmp_path, [trajectory(1), trajectory(2, answer="Bo")])
    config = Config(run_dir=tmp_path)
    first = assemble(config, [found], run=1, skipped=0)
    path = tmp_path / "data" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: .*Build again: finished shards are kept"):
        DataSet(tmp_path)
    assert assemble(config, [found], run=1, skipped=0) == first
    assert [seen.fate for seen in DataSet(tmp_path)] == ["kept", "wrong_answer"]


def test_a_spread_is_median_95th_percentile_and_most():
    assert spread(Counter()) is None
    assert spread(Counter([7])) == (7, 7, 7)
    assert spread(Counter(range(101))) == (50, 95, 100)
