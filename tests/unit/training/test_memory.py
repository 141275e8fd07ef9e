"""The estimate of memory: against tensors that a real model keeps, against known models, presets and refusals."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from steper_ray.config import TrainConfig
from steper_ray.config.presets import GPU_GB, PRESETS
from steper_ray.core.errors import TrainingError
from steper_ray.models import resolve_model
from steper_ray.training.attention import IMPLEMENTATIONS, attention_inputs
from steper_ray.training.engine import Engine, Worker
from steper_ray.training.fit import Memory, check_fit, describe, print_estimates, worker_memory
from steper_ray.training.memory import activations, estimate_memory, logits
from steper_ray.training.packing import Branch, Tree, example_losses, pack, supervised_columns
from steper_ray.training.sizes import model_size

#: Students of each size as their own configs give them, with their parameters as they are published.
FAMILIES = {
    "0.5b": ("qwen2", (896, 24, 4864, 14, 2, 151936, True), 494.0e6),
    "1.5b": ("qwen2", (1536, 28, 8960, 12, 2, 151936, True), 1543.7e6),
    "3b": ("llama", (3072, 28, 8192, 24, 8, 128256, True), 3212.7e6),
    "7b": ("qwen2", (3584, 28, 18944, 28, 4, 152064, False), 7615.6e6),
    "8b": ("llama", (4096, 32, 14336, 32, 8, 128256, False), 8030.3e6),
}
TINY = ("llama", (128, 4, 352, 4, 2, 500, False), 0)


def shape_of(family):
    kind, (hidden, layers, inner, heads, kv_heads, vocabulary, tied), _ = family
    return AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


def estimate(family, **settings):
    config = TrainConfig(**settings)
    return estimate_memory(model_size(shape_of(family), config), config)


def tree_of(tokens):
    """Five branches on one trunk; they learn a quarter of all tokens."""
    learned = tokens // 20
    trunk, prompt = tokens * 5 // 8, tokens * 3 // 40 - learned
    branches = tuple(Branch(trunk * (i + 1) // 5, [4] * prompt, [5] * learned, i % 3) for i in range(5))
    return Tree([3] * trunk, branches)


def kept(config):
    """Bytes of all that a real forward pass keeps for the backward pass besides the weights."""
    model = AutoModelForCausalLM.from_config(
        shape_of(TINY),
        dtype=getattr(torch, config.dtype),
        attn_implementation=IMPLEMENTATIONS[config.attention],
    ).train()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    packed = pack([tree_of(config.row_tokens)] * config.rows_per_micro_batch, config.row_tokens, 0)
    columns, storages = supervised_columns(packed), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            logits_to_keep=columns,
            use_cache=False,
            **attention_inputs(packed, config.attention, getattr(torch, config.dtype)),
        )
        example_losses(output.logits, packed, columns)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["blocks", "dense"])
@pytest.mark.parametrize("rows", [1, 2])
def test_activations_are_what_a_real_model_keeps(dtype, attention, rows):
    config = TrainConfig(dtype=dtype, attention=attention, row_tokens=400, rows_per_micro_batch=rows)
    size = model_size(shape_of(TINY), config)
    counted = activations(size, config) + logits(size, config)
    assert 0.9 < counted / kept(config) < 1.25


def test_checkpointing_keeps_a_layers_input_alone():
    config = TrainConfig(dtype="float32", row_tokens=400, gradient_checkpointing=True)
    size = model_size(shape_of(TINY), config)
    one_more = activations(replace(size, layers=size.layers + 1), config) - activations(size, config)
    assert one_more == 4 * 400 * 128
    assert kept(config) < 0.5 * kept(config.model_copy(update={"gradient_checkpointing": False}))


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_counted_as_published(name):
    size = model_size(shape_of(FAMILIES[name]), TrainConfig())
    assert size.parameters == size.trainable == pytest.approx(FAMILIES[name][2], rel=1e-3)


def test_of_lora_the_adapters_alone_learn():
    config = TrainConfig(lora={"rank": 8, "target_modules": ["q_proj", "down_proj"]})
    size = model_size(shape_of(TINY), config)
    assert size.trainable == 4 * 8 * ((128 + 128) + (352 + 128))
    assert size.parameters == model_size(shape_of(TINY), TrainConfig()).parameters


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "cpu"])
def test_a_preset_fits_the_gpu_it_is_for(name):
    size = name.split("-")[0]
    need = estimate(FAMILIES[size], preset=name)
    assert need.device < GPU_GB[size] * 1e9
    if PRESETS[name]["offload"]:
        assert estimate(FAMILIES[size], preset=name, offload=False).device > GPU_GB[size] * 1e9


def test_mixed_precision_states_are_the_papers_16_bytes_and_float32_sums():
    size = 8.03e9
    states = estimate(FAMILIES["8b"], use_gpu=True, workers=8, zero_stage=2)
    whole = 2 * size  # bfloat16 weights; the rest is divided by the workers
    assert states.parameters == pytest.approx(whole, rel=1e-3)
    assert states.gradients + states.optimizer == pytest.approx((4 + 4 + 8) * size / 8, rel=1e-3)


@pytest.mark.parametrize(
    "less",
    [
        {"workers": 8},
        {"gradient_checkpointing": True},
        {"offload": True},
        {"row_tokens": 2048},
        {"rows_per_micro_batch": 1},
        {"lora": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_said_to_save_memory_does(less):
    settings = {"use_gpu": True, "workers": 4, "row_tokens": 8192, "rows_per_micro_batch": 2}
    assert estimate(FAMILIES["8b"], **settings | less).device < estimate(FAMILIES["8b"], **settings).device


@pytest.fixture
def warned(caplog):
    """What `check_fit` warns of; an empty text where it lets a student through."""

    def check(shape, config, have):
        caplog.clear()
        check_fit(shape, config, have)
        return caplog.text

    return check


def test_a_student_that_may_not_fit_is_tried_with_a_warning_of_what_would_help(warned):
    shape, config = (
        shape_of(FAMILIES["8b"]),
        TrainConfig(use_gpu=True, workers=4, zero_stage=2, row_tokens=8192),
    )
    told = warned(shape, config, Memory(80e9, 2000e9))
    assert "may not fit" in told
    for setting in (
        "gradient_checkpointing=true",
        "zero_stage=3",
        "offload=true",
        "workers=8",
        "row_tokens=4096",
    ):
        assert f"train.{setting}" in told
    assert "train.check_memory=false" in told
    (fitting,) = [line for line in told.splitlines() if "train.lora={}" in line]
    assert "still too much" in fitting  # activations without checkpointing
    both = config.model_copy(update={"gradient_checkpointing": True, "zero_stage": 3})
    assert not warned(shape, both, Memory(80e9, 2000e9))


def test_a_student_whose_states_alone_do_not_fit_is_refused():
    config = TrainConfig(use_gpu=True, workers=4, zero_stage=2)
    with pytest.raises(TrainingError, match=r"does not fit: .* of it for the states, and has 24\.0 GB"):
        check_fit(shape_of(FAMILIES["8b"]), config, Memory(24e9, 2000e9))


def test_what_the_warning_calls_enough_is_let_through(warned):
    shape, config = shape_of(FAMILIES["8b"]), TrainConfig(preset="8b-4gpu", gradient_checkpointing=False)
    have = Memory(80e9, 2000e9)
    (line,) = [line for line in warned(shape, config, have).splitlines() if "gradient_checkpointing" in line]
    assert "still too much" not in line
    assert not warned(shape, config.model_copy(update={"gradient_checkpointing": True}), have)


def test_what_changes_next_to_nothing_is_not_called_a_help(warned):
    told = warned(shape_of(TINY), TrainConfig(workers=1, rows_per_micro_batch=10**5), Memory(8e9, 8e9))
    assert "train.rows_per_micro_batch=1: " in told
    assert "train.workers" not in told


def test_a_host_that_may_not_hold_what_is_offloaded_is_named(warned):
    shape, config = shape_of(FAMILIES["8b"]), TrainConfig(preset="8b-1gpu")
    assert not warned(shape, config, Memory(80e9, 400e9))
    assert "has 80.0 GB and 64.0 GB of host memory" in warned(shape, config, Memory(80e9, 64e9))


def test_the_engine_refuses_before_it_loads_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("steper_ray.training.engine._least", lambda worker: Memory(1e6, 1e6))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model, worker = resolve_model("miniature:base"), Worker(0, 1, torch.device("cpu"))
        with pytest.raises(TrainingError, match="miniature:base does not fit"):
            Engine(model, TrainConfig(workers=1), worker)
    finally:
        dist.destroy_process_group()


def test_workers_of_one_host_share_its_memory():
    alone, of_four = (worker_memory(torch.device("cpu"), n) for n in (1, 4))
    assert alone.device == alone.host == pytest.approx(4 * of_four.host)


def test_the_table_tells_each_part_once_for_equal_students(capsys):
    student = (resolve_model("miniature:base"), TrainConfig(row_tokens=512))
    print_estimates(
        [student, (student[0], student[1].model_copy(update={"seed": 1})), ("no/such-model", student[1])]
    )
    told = capsys.readouterr().err
    assert told.count("states    parameters") == 1
    assert "1.0 M parameters (all learn), ZeRO stage 3, float32" in told
    assert "no estimate, no/such-model cannot be read from here" in told


def test_a_config_that_transformers_does_not_know_is_left_for_the_workers_to_name(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    print_estimates([(str(tmp_path), TrainConfig())])
    assert f"no estimate, {tmp_path} cannot be read from here" in capsys.readouterr().err
    assert "offloaded, bfloat16" in describe(shape_of(FAMILIES["8b"]), TrainConfig(preset="8b-1gpu"))
