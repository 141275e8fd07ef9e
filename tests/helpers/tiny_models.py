"""Tiny causal language models of many architectures, with random weights, from transformers' configs."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 50
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: What an architecture needs besides.
_MORE = {
    "codegen": {"rotary_dim": 4, "n_ctx": 128},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "gemma2": {"attn_logit_softcapping": 5.0},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gptj": {"rotary_dim": 4},
    "gpt_oss": {"num_local_experts": 4},
    "helium": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "qwen3_next": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "xglm": {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 32},
}


def tiny_config(family, **settings):
    return AutoConfig.for_model(family, **(_SHAPE | _MORE.get(family, {}) | settings))


def tiny_model(family, **settings):
    """In float32, with eager attention. Norms, biases and sinks are random too: none of them is without effect."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        tiny_config(family, **settings), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter += 0.1 * torch.randn_like(parameter)
    return model
