"""What a build refuses before it reads, indexes or asks anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steper_ray.config import Config
from steper_ray.core.errors import DataError, SteperError
from steper_ray.data.build import build_data

PLAIN = {"id": "q1", "question": "Who sings?", "answers": ["Ode"]}
HOTPOT = {
    "_id": "h1",
    "question": "Who?",
    "answer": "Ode",
    "supporting_facts": [],
    "context": [["Ode", ["Ode."]]],
}


@pytest.mark.parametrize("record", [PLAIN, HOTPOT], ids=["plain", "hotpotqa"])
def test_annotations_of_questions_without_a_decomposition_are_refused_before_an_index_is_built(
    tmp_path: Path, record: dict[str, object]
) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "p1", "text": "Ode sings."}))
    paths = {name: tmp_path / f"{name[0]}.jsonl" for name in ("questions", "passages")}
    config = Config.model_validate(
        {"run_dir": tmp_path / "run", "corpus": paths, "build": {"teacher": "annotation"}}
    )
    with pytest.raises(DataError, match=r"have none: set build\.teacher=engine"):
        build_data(config)
    assert not (tmp_path / "run" / "index").exists()


@pytest.mark.parametrize(
    ("reasoning", "message"),
    [
        ({"framework": "iter_retgen"}, r"no steps to learn: build with ircot"),
        ({"k": 0}, r"reasoning\.k=0 searches for nothing"),
    ],
)
def test_a_baseline_without_steps_is_refused_as_a_teacher(
    tmp_path: Path, reasoning: dict[str, object], message: str
) -> None:
    with pytest.raises(SteperError, match=message):
        build_data(Config.model_validate({"run_dir": tmp_path / "run", "reasoning": reasoning}))
    assert not (tmp_path / "run" / "index").exists()
