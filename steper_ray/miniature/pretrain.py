"""Trains the miniature's tokenizer and models: plain AdamW on packed trees, on one machine, from a seed.

Not the student's training loop (that is `training/`): this makes the starting points it is given.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steper_ray.training.packing import Tree, attention_mask, example_losses, pack, supervised_columns

logger = logging.getLogger(__name__)

VOCABULARY = 1024
ROW = 640


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be encoded and is decoded to itself."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def new_model(width: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A Llama with heads of 32 and tied embeddings, float32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=width * 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def train(
    model: LlamaForCausalLM,
    batches: Iterator[list[Tree]],
    steps: int,
    rate: float,
    *,
    save_to: Path | None = None,
    log_every: int = 50,
) -> None:
    """AdamW with linear warm-up and cosine decay; mean loss over examples."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1, (s + 1) / 100) * (0.05 + 0.95 * (1 + math.cos(math.pi * s / steps)) / 2),
    )
    model.train()
    started, tokens = time.monotonic(), 0
    for step, trees in zip(range(1, steps + 1), batches, strict=False):
        packed = pack(trees, ROW, pad_id=2)
        columns = supervised_columns(packed)
        logits = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=attention_mask(packed),
            logits_to_keep=columns,
        ).logits
        loss = example_losses(logits, packed, columns).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tokens += packed.input_ids.numel()
        if step % log_every == 0:
            speed = tokens / (time.monotonic() - started)
            logger.info("step %d/%d loss %.4f, %.0f tokens/s", step, steps, loss.item(), speed)
            if save_to is not None:
                model.save_pretrained(save_to)
    model.eval()
