"""An exported student: it ends where it learned to end, and its folder says what was written."""

import json
import shutil
import subprocess

import pytest
import torch.distributed as dist
from chat_templates import TEMPLATES
from training_examples import gold_examples, write_trajectories
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from steper_ray.config import PromptConfig, TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.core.files import temporary
from steper_ray.models import check_sums, resolve_model
from steper_ray.prompts import style_of
from steper_ray.training.export import export, export_kept
from steper_ray.training.job import TrainJob, finished, make_task
from steper_ray.training.loop import load_together
from steper_ray.training.lora import add_adapters

LORA = {"rank": 2, "target_modules": ["q_proj"]}


@pytest.fixture
def make(tmp_path):
    """A task whose student is the miniature base with another generation config, or with none."""

    def task(settings, **train):
        student = tmp_path / "base"
        shutil.copytree(resolve_model("miniature:base"), student)
        file = student / "generation_config.json"
        if settings is None:
            file.unlink()
        else:
            file.write_text(json.dumps(settings))
        examples = write_trajectories(tmp_path / "kept.parquet", gold_examples(1, 2))
        config = TrainConfig(student=str(student), row_tokens=1024, **train)
        return make_task(TrainJob("student", config, examples, tmp_path / "student"), tmp_path)

    return task


def exported(task):
    """The generation config and the tokenizer's end in the folder of a student that learned nothing."""
    config, state = task.job.config, {}
    student = AutoModelForCausalLM.from_pretrained(task.model)
    if config.lora is None:
        state = student.state_dict()
    else:
        student = add_adapters(student, config.lora, 0)
        state = {n: p.detach() for n, p in student.named_parameters() if p.requires_grad}
    export(task, student, state, steps=1, summary={})
    folder = task.job.output
    return GenerationConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder).eos_token_id


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_student_stops_at_the_token_it_learned_and_where_its_base_stopped(make, lora):
    found, learned = exported(make({"eos_token_id": [7, 9], "top_k": 5, "do_sample": True}, lora=lora))
    assert found.eos_token_id == [learned, 7, 9]
    assert learned not in (7, 9)
    assert (found.top_k, found.do_sample) == (5, True)


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_export_lists_its_files_for_sha256sum_and_replaces_what_a_killed_one_left(make, lora):
    task = make({"eos_token_id": 1}, lora=lora)
    output = task.job.output
    left = temporary(output)
    left.mkdir()
    (left / "model.safetensors").touch()
    exported(task)
    assert sorted(p.name for p in output.parent.iterdir()) == ["base", "kept.parquet", output.name]
    told = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=output, capture_output=True, text=True)
    assert told.returncode == 0
    assert told.stdout.count(": OK") == len(list(output.iterdir())) - 1
    assert finished(task) is not None


def test_the_best_student_is_exported_only_while_it_is_whole(make, tmp_path):
    task = make({"eos_token_id": 1})
    exported(task)
    kept = tmp_path / "training" / "student" / "best"
    kept.parent.mkdir(parents=True)
    task.job.output.rename(kept)
    export_kept(task, kept, 1, 2, {}, {})
    assert finished(task).steps == 2
    assert check_sums(task.job.output) is None
    weights = kept / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"best: the best student so far is damaged: model\.safetensors"):
        export_kept(task, kept, 1, 2, {}, {})


@pytest.mark.parametrize("ends", [1, [7, 1]])
def test_ends_that_name_the_token_already_stay_as_they_are(make, ends):
    found, learned = exported(make({"eos_token_id": ends}))
    assert learned == 1
    assert found.eos_token_id == ends


@pytest.mark.parametrize("settings", [None, {}])
def test_a_base_that_states_no_end_gives_a_student_that_does(make, settings):
    found, learned = exported(make(settings))
    assert found.eos_token_id == learned


def test_a_generation_config_that_cannot_be_written_stops_a_training_before_its_first_step(make, tmp_path):
    task = make({"eos_token_id": 1, "temperature": 0.6})
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.raises(
            TrainingError, match=r"base: its generation_config.json contradicts itself.*do_sample"
        ):
            load_together(task)
    finally:
        dist.destroy_process_group()


def test_a_student_of_a_chat_model_carries_the_template_and_ends_with_its_turn(make):
    task = make({"eos_token_id": 7})
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = TEMPLATES["phi"][0]
    tokenizer.save_pretrained(task.model)
    found, eos = exported(task)
    student = AutoTokenizer.from_pretrained(task.job.output)
    end = student.convert_tokens_to_ids("<|end|>")
    assert found.eos_token_id == [end, 7]
    assert end != eos
    assert student.chat_template == TEMPLATES["phi"][0]
    assert style_of(student, PromptConfig()).format == "chat"
