"""Outages of an endpoint during build and evaluation: owed, named, and asked again; nothing is asked twice."""

import dataclasses
import json

import pytest
from weather import Weather

from steper_ray.config.file import load_config
from steper_ray.core.errors import EngineSetupError, LockedError, OwedError, StorageError
from steper_ray.data.build import build_data
from steper_ray.data.inspection import DataSet
from steper_ray.evaluation.pipeline import EvalJob, evaluate
from steper_ray.evaluation.store import job_files, read_trajectories
from steper_ray.generation.endpoint.routing import BEGUN

pytestmark = pytest.mark.usefixtures("ray_cluster")

QUESTIONS = 8
PROBE = "Hi"  # what an engine is asked first
JOB = EvalJob("endpoint", "tiny", "sentence")


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """A config whose teacher is an endpoint that is asked twice a question and pass at most."""
    monkeypatch.setenv("ENDPOINT_KEY", "sk-very-secret")

    def make(url, *overrides, route="completions"):
        own = f"kind: openai, model: tiny, url: '{url}', api_key_env: ENDPOINT_KEY, retries: 0, timeout_s: 3"
        own += f", route: {route}"
        corpus = ("corpus.miniature.worlds=1", f"corpus.limit={QUESTIONS}")
        sizes = ("build.shard_size=3", "evaluate.chunk_size=3", "evaluate.engines=1", "reasoning.stop=fixed")
        return load_config(
            None, [f"run_dir={tmp_path / 'run'}", f"engine={{{own}}}", *corpus, *sizes, *overrides]
        )

    return make


class Storm:
    """Every second question is struck, each by another kind of weather."""

    KINDS = (500, 429, "cut", "silence")

    def __init__(self, gone_at=None):
        """At probe number `gone_at` the endpoint has no such model."""
        self.struck, self._gone_at = {}, gone_at
        self._seen, self._probes = [], 0

    def __call__(self, question):
        if question == PROBE:
            self._probes += 1
            return 404 if self._probes == self._gone_at else "well"
        if question not in self._seen:
            self._seen.append(question)
            if len(self._seen) % 2:
                self.struck[question] = self.KINDS[len(self.struck) % len(self.KINDS)]
        return self.struck.get(question, "well")


def test_an_endpoint_that_only_chats_is_a_teacher_and_a_student(configure):
    with Weather(chat=True) as endpoint:
        config = configure(endpoint.url, route="auto")
        report = build_data(config)
        scores = evaluate(config, [JOB])[JOB.name][JOB.unit]
    assert (report.trajectories, report.owed) == (QUESTIONS, 0)
    assert (scores.n, scores.owed, scores.errors) == (QUESTIONS, 0, 0)
    asked = {
        question: count
        for question, count in endpoint.answered.items()
        if question not in (PROBE, BEGUN.user)
    }
    assert len(asked) == QUESTIONS
    assert set(asked.values()) == {2}  # by the build and by the evaluation


def test_what_an_outage_takes_from_a_build_is_owed_and_asked_by_the_next_alone(configure):
    storm = Storm()
    with Weather(storm) as weather:
        config = configure(weather.url)
        with pytest.raises(
            OwedError, match=rf"4 of {QUESTIONS} questions are owed: .*same command again"
        ) as caught:
            build_data(config)
        assert caught.value.exit_status == 75
        assert "owed        4 questions: build again" in caught.value.report
        data = config.run_dir / "data"
        owed = [json.loads(line) for line in (data / "owed.jsonl").read_text().splitlines()]
        assert len(owed) == len(set(storm.struck.values())) == 4
        assert {one["attempts"] for one in owed} == {2}  # again at the end of the same run
        assert {weather.asked[question] for question in storm.struck} == {2}
        assert json.loads((data / "manifest.json").read_text())["counts"]["owed"] == 4
        ended = {seen.trajectory.question.id for seen in DataSet(config.run_dir)}
        assert len(ended) == QUESTIONS - 4
        assert ended.isdisjoint(one["question"] for one in owed)
        struck, before = set(storm.struck), weather.answered.copy()
        storm.struck.clear()
        report = build_data(config)
        assert (report.owed, report.trajectories) == (0, QUESTIONS)
        assert (data / "owed.jsonl").read_text() == ""
        assert set(weather.answered - before) - {PROBE} == struck
        asked = weather.asked.total()
        assert build_data(config) == dataclasses.replace(report, shards_run=0)
        assert weather.asked.total() == asked


def test_an_evaluation_counts_what_is_owed_and_scores_it_once_it_is_there(configure):
    storm = Storm(gone_at=2)  # when the owed ones are asked again
    with Weather(storm) as weather:
        with pytest.raises(OwedError, match="evaluation: 4 of 8 questions are owed"):
            evaluate(configure(weather.url), [JOB])
        config = configure(weather.url, "evaluate.max_failed=1")
        scores = evaluate(config, [JOB])["endpoint"]["sentence"]
        assert (scores.owed, scores.errors, scores.n) == (4, 4, QUESTIONS)
        struck, before = set(storm.struck), weather.answered.copy()
        storm.struck.clear()
        whole = evaluate(config, [JOB])["endpoint"]["sentence"]
        assert (whole.owed, whole.errors, whole.n) == (0, 0, QUESTIONS)
        assert set(weather.answered - before) - {PROBE} == struck
        assert len(list(read_trajectories(job_files(config.run_dir, JOB)))) == QUESTIONS


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "This is a chat model"),
        (401, r"refused the key.* set it in \$ENDPOINT_KEY"),
        (403, "ENDPOINT_KEY"),
    ],
)
def test_a_setting_that_refuses_every_question_is_one_line_at_once(configure, status, said):
    with Weather(lambda question: status) as weather:
        with pytest.raises(EngineSetupError, match=said) as caught:
            build_data(configure(weather.url))
        assert "\n" not in str(caught.value)
        assert "sk-very-secret" not in str(caught.value)
        assert weather.asked.total() == 1
    with pytest.raises(EngineSetupError, match=r"cannot reach .*engine\.url"):
        build_data(configure(weather.url))


def test_a_second_build_in_one_run_dir_is_refused_while_the_first_is_at_work(configure):
    from steper_ray.core.locks import locked

    config = configure("http://127.0.0.1:9/v1")
    with (
        locked(config.run_dir, "build"),
        pytest.raises(LockedError, match="another build is at work here: host"),
    ):
        build_data(config)


def test_a_folder_that_cannot_be_written_is_one_line(configure, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").write_text("a file in the way")
    with Weather() as weather, pytest.raises(StorageError, match=r"cannot be written[^\n]*$"):
        build_data(configure(weather.url))


def test_a_question_that_cannot_be_asked_is_final_and_on_the_console(configure):
    with Weather() as weather:
        report = build_data(configure(weather.url, "reasoning.max_question_chars=40"))
        rejected = report.dropped["rejected"]
        assert 0 < rejected < QUESTIONS
        assert weather.asked.total() == 1 + QUESTIONS - rejected
    assert f"rejected    {rejected} questions, the first: the question has" in report.summary()
    assert "reasoning.max_question_chars" in report.summary()
