"""The student inside DeepSpeed, in this process."""

import gc
from dataclasses import replace

import pytest
import torch
from one_worker import one_worker
from tiny_models import tiny_model
from training_examples import gold_examples, tokens_of, write_trajectories
from training_jobs import task_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.models import resolve_model
from steper_ray.training import engine as room
from steper_ray.training.engine import Engine
from steper_ray.training.loop import Trainer
from steper_ray.training.packing import Branch, Tree, pack_rows

TREE = Tree(list(range(3, 30)), (Branch(20, [5, 6], [7, 2], 0), Branch(27, [5, 6], [7, 8, 2], 2)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with one_worker(tmp_path_factory.mktemp("group")) as worker:
        yield worker


def _tensor_bytes() -> int:
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"lora": {}}, {"zero_stage": 2}])
def test_a_closed_engine_leaves_its_memory_to_the_next_student(alone, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(room, "SMALL", 1000)  # sharded, as a large model is
    tiny_model("llama").save_pretrained(tmp_path / "model")
    config = TrainConfig.model_validate({"workers": 1, "check_memory": False, **settings})
    _tensor_bytes()  # what earlier tests left goes first
    before = _tensor_bytes()
    engine = Engine(str(tmp_path / "model"), config, alone)
    for _ in range(2):
        engine.backward(engine.losses(pack_rows([TREE], [[0]], 0)).mean(), last=True)
        engine.step(1e-5)
    assert _tensor_bytes() - before > 50_000
    engine.close()
    assert _tensor_bytes() - before < 5_000


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        (
            "mistral",
            {"intermediate_size": 32, "num_key_value_heads": 2, "sliding_window": 512},
            r"has layers of sliding_attention.*lower train.row_tokens \(1024\)",
        ),
        (
            "bloom",
            {"initializer_range": 0.5},
            r"BloomForCausalLM\) cannot be trained exactly.*train.attention=eager",
        ),
    ],
)
def test_a_student_that_packing_does_not_fit_is_refused_before_its_first_step(
    alone, tmp_path, family, settings, said
):
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        family, vocab_size=1024, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **settings
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "odd")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("miniature:base"))
    tokenizer.save_pretrained(tmp_path / "odd")
    examples = write_trajectories(tmp_path / "kept.parquet", gold_examples())
    task = task_of(tmp_path, examples, student=str(tmp_path / "odd"), row_tokens=1024, check_memory=False)
    with pytest.raises(TrainingError, match=said):
        Trainer(replace(task, tokens=tokens_of(examples, tokenizer)), alone, None)
