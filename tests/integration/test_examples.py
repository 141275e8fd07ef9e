"""The scripts of examples/, as their docstrings run them."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from local_endpoint import QUESTION, LocalEngine, listening, replies

from steper_ray.config import ReasoningConfig
from steper_ray.corpora.miniature import make_corpus
from steper_ray.data.export import export
from steper_ray.frameworks import FRAMEWORKS, layout_for
from steper_ray.schema import to_row

ROOT = Path(__file__).parents[2]


def example(name):
    spec = spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def student(ray_cluster, tmp_path_factory):
    """The run of the first example: its folder, and its student's."""
    folder = tmp_path_factory.mktemp("own")
    passages, questions = make_corpus(5, 1, 8, "train")
    for name, rows in (("passages", passages), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(to_row(row)) + "\n" for row in rows))
    fast = ("build.teacher=annotation", "train.max_steps=1", "train.batch_examples=8", "train.workers=1")
    files = (str(folder / "passages.jsonl"), str(folder / "questions.jsonl"))
    model = example("own_documents_to_student").main(*files, str(folder / "run"), *fast)
    return folder / "run", Path(model)


def test_own_documents_become_a_student(student):
    run, model = student
    assert model == run / "models" / "steper"
    assert (model / "model.safetensors").is_file()


def test_an_export_is_read_as_trl_takes_it(student, tmp_path):
    export(student[0], tmp_path / "out")
    data = example("read_into_trl").main(str(tmp_path / "out"))
    assert data.column_names == ["prompt", "completion"]
    assert len(data) > 8
    assert all(row["completion"].strip() for row in data)


def test_the_new_framework_is_named_by_its_import_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    name = "examples.new_framework:Notes"
    try:
        layout = layout_for(ReasoningConfig(framework=name, few_shot=True))
    finally:
        del FRAMEWORKS[name]
    assert layout.text("Who?", [], ["One."]).endswith("? Who?\n- One.")


async def test_the_new_retriever_finds_what_the_question_names():
    trajectory = await example("new_retriever").answer("Who directed Alba ?")
    assert [hit.passage.title for hit in trajectory.steps[0].hits] == ["Alba"]


async def test_the_client_prints_an_answer():
    with listening(LocalEngine(replies())) as url:
        assert await example("client").main(url, QUESTION) == ["Cem"]
