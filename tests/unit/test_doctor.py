"""steper doctor: what is right is said, and what is broken on purpose is found, with the fix."""

import asyncio
import shutil

import pytest
from chat_templates import byte_tokenizer
from http_endpoint import Endpoint, refusal, said, serving
from typer.testing import CliRunner

from steper_ray.cli.main import app
from steper_ray.config.file import load_config
from steper_ray.core.errors import RetrievalError
from steper_ray.models import resolve_model
from steper_ray.recipes import doctor
from steper_ray.stages import index

SMALL = ("corpus.miniature.worlds=1", "corpus.limit=2")


@pytest.fixture
def examined(tmp_path):
    def run(*overrides):
        lines = []
        config = load_config(None, [f"run_dir={tmp_path / 'run'}", *SMALL, *overrides])
        faults = doctor.examine(config, lines.append)
        found = [line for line in lines if line.startswith("FAULT")]
        assert len(found) == faults
        return "\n".join(lines), found

    return run


def test_a_config_that_works_is_shown_with_its_prompt_its_chain_and_its_speed(examined):
    text, faults = examined("reasoning.stop=fixed", "reasoning.unit=chain")
    assert not faults, text
    assert "none yet; the first command builds it" in text
    assert "| Title: " in text
    assert "| Q: " in text
    assert "1. " in text
    assert "token ids, log-probabilities" in text
    assert "tokens/s" in text


def test_a_student_that_learns_from_the_builds_log_probabilities_needs_them_in_its_own_tokens(
    examined, tmp_path
):
    learns = "train.soft_targets.teacher=build"
    text, faults = examined("build.logits=2", learns, "reasoning.stop=fixed", "reasoning.unit=chain")
    assert not faults, text
    assert "those of the 2 likeliest tokens" in text
    (fault,) = examined(learns)[1]
    assert "set build.logits, such as 8" in fault
    shutil.copytree(resolve_model("miniature:base"), tmp_path / "other")
    byte_tokenizer("qwen3").save_pretrained(tmp_path / "other")
    (fault,) = examined("build.logits=2", learns, f"train.student={tmp_path / 'other'}")[1]
    assert "has another tokenizer than the teacher miniature:teacher" in fault


def test_a_stale_index_is_found(examined, tmp_path):
    folder = index(load_config(None, [f"run_dir={tmp_path / 'run'}", *SMALL]))
    _, faults = examined(f"retrieval.index_dir={folder}", "corpus.miniature.seed=2")
    assert any("index" in line and "build" in line for line in faults), faults


def test_a_full_disk_no_java_and_a_wrong_model_are_found_and_all_are_named(examined, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_FREE", 2**62)
    monkeypatch.setattr(
        "steper_ray.retrieval.java.find_java", lambda: (_ for _ in ()).throw(RetrievalError("no Java 21"))
    )
    _, faults = examined("retrieval.kind=lucene", "engine.model=/absent")
    assert [line.split()[1] for line in faults] == ["disk", "java", "model"]
    assert "set run_dir to another disk" in faults[0]
    assert "/absent" in faults[2]


def test_files_that_are_not_there_end_the_checks_that_need_them(examined):
    text, faults = examined(
        "corpus.kind=plain", "corpus.questions=/absent.jsonl", "corpus.passages=/absent.jsonl"
    )
    assert ["/absent.jsonl" in line for line in faults] == [True]
    assert "model" not in text


async def test_an_endpoint_is_shown_as_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDPOINT_KEY", "sk-secret")
    lines = []
    async with serving(Endpoint()) as endpoint:
        end = said("So the answer is: Bo.", "stop")
        endpoint.replies = [(200, [said("is", "length")])] * 2 + [(200, [end])]
        engine = f"{{kind: openai, url: '{endpoint.url}', model: big, api_key_env: ENDPOINT_KEY}}"
        config = load_config(None, [f"run_dir={tmp_path}", *SMALL, f"engine={engine}"])
        faults = await asyncio.to_thread(doctor.examine, config, lines.append)
        assert faults == 0, lines
        assert "through the chat route (engine.prefill=continue); gives text alone" in lines[-1]
        assert any(line.startswith("       | [user] ") for line in lines)
        endpoint.replies = [(401, refusal("who?"))]
        faults = await asyncio.to_thread(doctor.examine, config, lines.append)
        assert faults == 1
        assert "$ENDPOINT_KEY" in lines[-1]
    assert "sk-secret" not in "\n".join(lines)


SAID = {
    "Bo. So the answer is: Bo. So the answer is: Bo.": "states an answer that is none, 'Bo. So the answer is: Bo'",
    f"So the answer is: {'so ' * 30}.": "states an answer that is none, 'so so",
    "Bo is a town.": "states no answer",
}


async def chained(folder, reply):
    """What doctor says of an endpoint that writes this chain."""
    lines = []
    async with serving(Endpoint()) as endpoint:
        endpoint.replies = [(200, [said("is", "length")])] * 2 + [(200, [said(reply, "stop")])]
        engine = f"{{kind: openai, url: '{endpoint.url}', model: big}}"
        overrides = [
            f"run_dir={folder}",
            *SMALL,
            f"engine={engine}",
            "reasoning.unit=chain",
            "reasoning.max_steps=1",
        ]
        faults = await asyncio.to_thread(doctor.examine, load_config(None, overrides), lines.append)
    return faults, lines[-1]


@pytest.mark.parametrize(
    ("reply", "ignores"), [("So the answer is: Bo.\nQ: Who?", True), ("So the answer is: Bo.", False)]
)
async def test_an_endpoint_that_ignores_stop_strings_is_shown(tmp_path, reply, ignores):
    faults, last = await chained(tmp_path, reply)
    assert faults == 0
    assert "answers 'Bo'" in last
    assert ("ignores stop strings" in last) == ignores


@pytest.mark.parametrize("reply", SAID)
async def test_a_model_that_misses_the_form_of_an_answer_is_found(tmp_path, reply):
    faults, last = await chained(tmp_path, reply)
    assert faults == 1
    assert SAID[reply] in last
    assert "reasoning.few_shot=true" in last


def test_the_command_exits_with_the_status_of_a_mistake(tmp_path):
    done = CliRunner().invoke(app, ["doctor", f"run_dir={tmp_path}", "corpus.kind=plain",
                                    "corpus.questions=/absent", "corpus.passages=/absent"])  # fmt: skip
    assert done.exception is not None
    assert "1 check failed" in str(done.exception)
