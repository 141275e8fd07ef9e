"""LoRA on Ray Train and ZeRO-3, two CPU workers: adapters alone learn, resume is exact, exports load."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from training_death import KillRankOne
from training_examples import gold_examples, write_trajectories
from transformers import AutoModelForCausalLM, AutoTokenizer

from steper_ray.config import TrainConfig
from steper_ray.core.errors import ModelError
from steper_ray.core.jsonl import read_lines
from steper_ray.models import resolve_model
from steper_ray.training.trainer import TrainJob, train

BASE = resolve_model("miniature:base")
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
SETTINGS = {
    "lr": 1e-2,
    "warmup_ratio": 0.0,
    "max_steps": 3,
    "batch_examples": 12,
    "row_tokens": 1024,
    "rows_per_micro_batch": 2,
    "lora": LORA,
}
LONG = {"method": "vanilla_kd", "max_steps": 20, "checkpoint_every": 4, "batch_examples": 6}
#: What is trained, by name. All of them in one worker group; rank 1 of `killed` dies once.
VARIANTS = {
    "undisturbed": LONG,
    "killed": LONG,
    "merged": {},
    "unmerged": {"lora": LORA | {"merge": False}},
    "otherwise": {"attention": "dense", "gradient_checkpointing": True, "zero_stage": 2},
}


def metrics(result):
    return [json.loads(line) for line in read_lines(result.metrics_path)]


def weights(result):
    return load_file(result.model_dir / "model.safetensors")


def logits(model):
    ids = AutoTokenizer.from_pretrained(BASE)("Q: Who is the mother of the mayor?\nA:", return_tensors="pt")
    with torch.no_grad():
        return model.eval()(input_ids=ids.input_ids).logits


@pytest.fixture(scope="module")
def trained(ray_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    examples = write_trajectories(folder / "kept" / "part-0.parquet", gold_examples(3, 4)).parent
    jobs = [
        TrainJob(name, TrainConfig(**{**SETTINGS, **own}), examples, folder / "models" / name)
        for name, own in VARIANTS.items()
    ]
    killer = KillRankOne(folder / "training" / "killed" / "metrics.jsonl", 5)
    killer.start()
    results = train(jobs, run_dir=folder, progress=False)
    killer.stop()
    return folder, killer, {result.name: result for result in results}


def test_the_adapters_learn_and_the_base_stays_as_it_was(trained):
    _, _, results = trained
    lines = metrics(results["undisturbed"])
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    base, ours = load_file(f"{BASE}/model.safetensors"), weights(results["undisturbed"])
    assert set(ours) == set(base)
    for name, value in base.items():
        assert torch.equal(ours[name], value.float()) == ("_proj" not in name), name


def test_a_killed_worker_resumes_to_the_bit_from_checkpoints_without_the_base(trained):
    folder, killer, results = trained
    assert killer.killed is not None
    assert killer.lines < LONG["max_steps"], "killed too late to matter"
    ours, theirs = metrics(results["killed"]), metrics(results["undisturbed"])
    assert [(line["step"], line["loss"], line["grad_norm"]) for line in ours] == [
        (line["step"], line["loss"], line["grad_norm"]) for line in theirs
    ]
    wanted = weights(results["undisturbed"])
    for name, value in weights(results["killed"]).items():
        assert torch.equal(value, wanted[name]), name
    base = sum(value.numel() * 4 for value in wanted.values())
    checkpoints = [p for p in (folder / "training" / "ray").rglob("state") if p.is_dir()]
    assert checkpoints
    for checkpoint in checkpoints:
        assert sum(file.stat().st_size for file in checkpoint.iterdir()) < base / 2


def test_attention_checkpointing_and_zero_stage_leave_the_adapters_gradients_as_they_are(trained):
    _, _, results = trained
    for ours, theirs in zip(metrics(results["merged"]), metrics(results["otherwise"]), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)


def test_the_merged_folder_is_the_base_with_the_adapters_that_the_other_export_holds(trained):
    _, _, results = trained
    merged, adapters = results["merged"].model_dir, results["unmerged"].model_dir
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    plain = logits(base)
    adapted = logits(peft.PeftModel.from_pretrained(base, adapters))
    assert (adapted - plain).abs().max() > 0.1
    ours = logits(AutoModelForCausalLM.from_pretrained(merged))
    assert torch.allclose(ours, adapted, atol=1e-4)
    assert not (merged / "adapter_config.json").exists()
    assert (
        AutoTokenizer.from_pretrained(adapters).get_vocab() == AutoTokenizer.from_pretrained(BASE).get_vocab()
    )
    for folder in (merged, adapters):
        record = json.loads((folder / "steper.json").read_text())
        assert record["config"]["lora"]["rank"] == 4
        assert "LoRA adapters of rank 4" in (folder / "README.md").read_text()


def test_an_adapters_folder_is_refused_where_a_whole_model_is_needed(trained):
    _, _, results = trained
    with pytest.raises(
        ModelError, match=r"LoRA adapters, not a whole model: train with train.lora.merge=true"
    ):
        resolve_model(str(results["unmerged"].model_dir))
