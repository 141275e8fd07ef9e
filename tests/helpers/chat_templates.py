"""Chat templates that render as those of well-known model families do, and a tokenizer of bytes that carries one."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Family -> template, its control tokens, and the one that ends a reply.
TEMPLATES = {
    "llama3": (
        "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{% set system = messages[0].content | trim if messages[0].role == 'system' else '' %}"
        "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n{{ system }}<|eot_id|>"
        "{% for m in messages if m.role != 'system' %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}",
        ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "qwen2.5": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        + CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "qwen3": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content.lstrip('\n') }}<|im_end|>{{ '\n' }}{% endfor %}",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "gemma3": (
        "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}{{ m.content | trim }}"
        "<end_of_turn>{{ '\n' }}{% endfor %}",
        ["<s>", "<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "gemma2": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>{{ '\n' }}{% endfor %}",
        ["<s>", "<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        ["<s>", "[INST]", "[/INST]"],
        "</s>",
    ),
    "phi": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "<|end|>",
    ),
    "smollm2": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are named SmolLM<|im_end|>\n"
        "{% endif %}" + CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
}
#: Families whose templates have no system role.
WITHOUT_SYSTEM = {"gemma2", "mistral"}


def byte_tokenizer(family):
    """A tokenizer with a token a byte, `</s>` as end of sequence, and the family's control tokens and template."""
    template, control, _ = TEMPLATES[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    bos = {"bos_token": "<s>"} if "<s>" in control else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="</s>",
        extra_special_tokens=[t for t in control if t != "<s>"],
        **bos,
    )
    tokenizer.chat_template = template
    return tokenizer
