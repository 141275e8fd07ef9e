"""Names of models as paths, and what a model's config says of its layers."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from steper_ray.config import EngineConfig
from steper_ray.models import absolute_engine, context_limit, partial_attention


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
