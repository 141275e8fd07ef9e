"""Answers as JSONL and in the official submission formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steper_ray.evaluation.predictions import Predicted, data_set, write_predictions
from steper_ray.schema import Hit, Passage, Question, Step, StopReason, Trajectory

HIT = Hit(Passage("p1", "Ode", "Ode sings in Vara."), 2.5)


def predicted(key: str, dataset: str, answer: str = "Vara") -> Predicted:
    question = Question(key, f"Where does {key} sing?", (), dataset=dataset)
    steps = (
        Step(1, question.text, (HIT,), "Ode sings."),
        Step(2, "Ode sings.", (), f"So the answer is: {answer}."),
    )
    return Predicted(question, Trajectory(question, "ircot", steps, answer, StopReason.ANSWERED, source="m"))


def owed(key: str, dataset: str) -> Predicted:
    return Predicted(Question(key, "Who?", (), dataset=dataset), None, "the endpoint is down")


def test_every_question_has_a_line_with_its_chain_and_its_passages_by_step(tmp_path: Path) -> None:
    found = write_predictions(tmp_path / "base-chain", lambda: [predicted("q1", ""), owed("q2", "")])
    (file,) = found.files
    first, second = map(json.loads, file.read_text().splitlines())
    assert file.name == "base-chain.jsonl"
    assert first == {
        "id": "q1",
        "question": "Where does q1 sing?",
        "answer": "Vara",
        "stop_reason": "answered",
        "error": None,
        "chain": ["Ode sings.", "So the answer is: Vara."],
        "passages": [{"id": "p1", "title": "Ode", "text": "Ode sings in Vara.", "score": 2.5, "step": 1}],
    }
    assert (second["answer"], second["stop_reason"], second["error"]) == ("", None, "the endpoint is down")
    assert found.summary().splitlines() == ["1 of 2 questions have an answer, 1 are owed", f"  {file}"]


SUBMISSIONS = {
    "hotpotqa": ("m.hotpotqa.json", {"answer": {"q1": "Vara", "q2": ""}, "sp": {"q1": [], "q2": []}}),
    "2wiki": (
        "m.2wiki.json",
        {
            "answer": {"q1": "Vara", "q2": ""},
            "sp": {"q1": [], "q2": []},
            "evidence": {"q1": [], "q2": []},
        },
    ),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_hotpotqas_and_2wikis_submissions_map_ids_to_answers(tmp_path: Path, name: str) -> None:
    found = write_predictions(tmp_path / "m", lambda: [predicted("q1", name), owed("q2", name)])
    file, wanted = SUBMISSIONS[name]
    assert [path.name for path in found.files] == ["m.jsonl", file]
    assert json.loads((tmp_path / file).read_text()) == wanted


def test_musiques_submission_is_a_line_a_question_in_their_order(tmp_path: Path) -> None:
    rows = [predicted("q2", "musique", "Lumen"), predicted("q1", "hotpot_qa"), predicted("q0", "musique")]
    found = write_predictions(tmp_path / "m", lambda: rows)
    assert [path.name for path in found.files] == ["m.jsonl", "m.musique.jsonl", "m.hotpotqa.json"]
    lines = [json.loads(line) for line in (tmp_path / "m.musique.jsonl").read_text().splitlines()]
    assert [(line["id"], line["predicted_answer"]) for line in lines] == [("q2", "Lumen"), ("q0", "Vara")]
    assert lines[0].keys() == {"id", "predicted_answer", "predicted_support_idxs", "predicted_answerable"}


NAMES = {
    "hotpotqa": ("hotpotqa", "hotpot_qa", "HotpotQA", "hotpot"),
    "2wiki": ("2wiki", "2WikiMultihopQA", "2wikimultihopqa", "2wiki_mqa"),
    "musique": ("musique", "MuSiQue-Ans", "musique_ans"),
    None: ("", "nq", "toy"),
}


@pytest.mark.parametrize(
    ("name", "known"), [(name, known) for known, names in NAMES.items() for name in names]
)
def test_a_set_is_known_as_people_write_its_name(name: str, known: str | None) -> None:
    assert data_set(name) == known
