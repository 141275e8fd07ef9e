"""Names of models as paths, folders that are not what was written, and what a model's config says of its layers."""

import json
import random
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from steper_ray.config import EngineConfig
from steper_ray.core.errors import ModelError
from steper_ray.core.sums import SUMS, write_sums
from steper_ray.models import (
    ASSETS,
    absolute_engine,
    check_adapter,
    context_limit,
    partial_attention,
    resolve_model,
)


@pytest.mark.parametrize(
    ("family", "settings", "tokens", "kinds"),
    [
        ("llama", {}, 10**6, []),
        ("mistral", {"sliding_window": 4096}, 4096, []),
        ("mistral", {"sliding_window": 4096}, 4097, ["sliding_attention"]),
        ("mistral", {"sliding_window": None}, 10**6, []),
        ("qwen2", {}, 10**6, []),
        ("gemma2", {"sliding_window": 4096}, 8192, ["sliding_attention"]),
        ("llama4_text", {"attention_chunk_size": 4096}, 4096, []),
        ("llama4_text", {"attention_chunk_size": 4096}, 4097, ["chunked_attention"]),
        ("gpt_neo", {"window_size": 256}, 256, []),
        ("gpt_neo", {"window_size": 256}, 257, ["local_attention"]),
        ("qwen3_next", {}, 2, ["linear_attention"]),
    ],
)
def test_a_window_that_no_sequence_outgrows_is_full_attention(family, settings, tokens, kinds):
    assert partial_attention(AutoConfig.for_model(family, **settings), tokens) == kinds


@pytest.mark.parametrize(
    ("family", "limit"), [("llama", 2048), ("gpt2", 1024), ("mpt", 2048), ("bloom", None), ("mamba", None)]
)
def test_the_limit_of_a_context_is_found_by_any_of_its_names(family, limit):
    assert context_limit(AutoConfig.for_model(family)) == limit


def test_folders_become_whole_paths_and_names_stay(tmp_path, monkeypatch):
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("teacher", "./teacher", "~/teacher"):
        found = absolute_engine(EngineConfig(model=name, tokenizer=name))
        assert (found.model, found.tokenizer) == (str(tmp_path / "teacher"),) * 2
    served = EngineConfig(kind="openai", url="http://host/v1", model="teacher", tokenizer="teacher")
    assert absolute_engine(served).model == "teacher"
    assert Path(absolute_engine(served).tokenizer or "") == tmp_path / "teacher"
    for name in ("miniature:teacher", "meta-llama/Llama-3.1-8B"):
        assert absolute_engine(EngineConfig(model=name)).model == name


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_bit_flipped_anywhere_in_the_weights_is_named_with_the_fix_and_reaches_no_engine(tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(resolve_model("miniature:base"), folder)
    write_sums(folder)
    assert resolve_model(str(folder)) == str(folder)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    said = r"student: damaged: model\.safetensors was changed .*Copy the folder again.*delete SHA256SUMS"
    for at in random.Random(0).sample(range(size), 40):
        flip(weights, at)
        with pytest.raises(ModelError, match=said):
            resolve_model(str(folder))
        flip(weights, at)
    assert resolve_model(str(folder)) == str(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"damaged: config\.json is missing"):
        resolve_model(str(folder))


def test_damaged_adapters_are_refused_and_folders_without_sums_are_taken(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    engine = EngineConfig(kind="vllm")
    check_adapter(str(tmp_path), engine)
    write_sums(tmp_path)
    check_adapter(str(tmp_path), engine)
    flip(tmp_path / "adapter_config.json", 6)
    with pytest.raises(ModelError, match=r"damaged: adapter_config\.json"):
        check_adapter(str(tmp_path), engine)


def _not_downloaded(folder):
    (folder / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    )


def _cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _without_a_part(folder):
    parts = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(parts))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_not_downloaded, r"model\.safetensors: a Git LFS pointer.*git lfs pull"),
        (_cut_off, r"model\.safetensors: cut off.*download it again"),
        (_without_a_part, r"1 files of weights are missing, the first: model-2\.safetensors"),
    ],
)
def test_weights_that_are_not_all_there_are_one_line(tmp_path, harm, reason):
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "base", folder)
    assert resolve_model(str(folder)) == str(folder)
    harm(folder)
    (folder / SUMS).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=reason):
        resolve_model(str(folder))
