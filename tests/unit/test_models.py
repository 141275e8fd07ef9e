"""What a model's config says of its layers."""

import pytest
from transformers import AutoConfig

from steper_ray.models import partial_attention


@pytest.mark.parametrize(
    ("family", "settings", "tokens", "kinds"),
    [
        ("llama", {}, 10**6, []),
        ("mistral", {"sliding_window": 4096}, 4096, []),
        ("mistral", {"sliding_window": 4096}, 4097, ["sliding_attention"]),
        ("mistral", {"sliding_window": None}, 10**6, []),
        ("qwen2", {}, 10**6, []),
        ("gemma2", {"sliding_window": 4096}, 8192, ["sliding_attention"]),
    ],
)
def test_a_window_that_no_sequence_outgrows_is_full_attention(family, settings, tokens, kinds):
    assert partial_attention(AutoConfig.for_model(family, **settings), tokens) == kinds
