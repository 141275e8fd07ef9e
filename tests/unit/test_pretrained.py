"""Code that a model's repository brings along runs where it is trusted, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import tiny_model

from steper_ray.core.errors import ModelError
from steper_ray.pretrained import load_model, load_shape

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({mark!r}, "a").close()
class ToyConfig(LlamaConfig):
    model_type = "toy"
class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model of an architecture of its own, and the file that its code makes when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = tmp_path / "toy", tmp_path / "ran"
    tiny_model("llama").save_pretrained(folder)
    (folder / "modeling_toy.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "modeling_toy.ToyConfig", "AutoModelForCausalLM": "modeling_toy.ToyForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "toy", "auto_map": names}))
    return folder, mark


def test_code_of_a_repository_does_not_run_and_no_terminal_is_asked(
    toy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = toy
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the terminal"))
    for load in (load_shape, load_model):
        with pytest.raises(ModelError, match=r"toy' brings Python code along.*trust_remote_code=true"):
            load(str(folder))
    assert not mark.exists()


def test_trusted_code_runs(toy: tuple[Path, Path]) -> None:
    folder, mark = toy
    assert load_shape(str(folder), True).model_type == "toy"
    assert type(load_model(str(folder), True)).__name__ == "ToyForCausalLM"
    assert mark.exists()
