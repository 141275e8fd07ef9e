"""What all workers of a training do together, so that none of them stops alone: agree on a message, read the data."""

from __future__ import annotations

import torch.distributed as dist

from steper_ray.core.errors import SteperError, TrainingError
from steper_ray.models import context_limit, partial_attention
from steper_ray.pretrained import load_shape, load_tokenizer
from steper_ray.prompts import end_of
from steper_ray.training.data import TrainingData, check_vocabulary, load_data
from steper_ray.training.export import generation_config
from steper_ray.training.job import Task


def first_message(message: str | None) -> str | None:
    """The message of the first worker that has one, sent to all; None if none has one. A barrier too."""
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return next((m for m in messages if m is not None), None)


def load_together(task: Task) -> TrainingData:
    """The data, or one worker's error raised by all: a worker that stopped alone would leave the others waiting."""
    data, message = None, None
    try:
        config = task.job.config
        shape = load_shape(task.model, config.trust_remote_code).get_text_config()
        tokenizer = load_tokenizer(task.model, config.trust_remote_code)
        if config.attention != "eager" and (kinds := partial_attention(shape, config.row_tokens)):
            raise TrainingError(
                f"job '{task.name}': {task.model} has layers of {', '.join(kinds)}, which do not see all of a "
                f"trajectory: lower train.row_tokens ({config.row_tokens}) to their window, if they have one; or set "
                "train.packing=padded and train.attention=eager, which leave attention to the model; or take another "
                "student"
            )
        generation_config(task.model, end_of(tokenizer, task.job.prompt))
        assert task.tokens is not None  # made before any worker started
        limit = context_limit(shape) or config.row_tokens
        data = load_data(task.tokens, config, limit, task.held_out)
        check_vocabulary(data, shape.vocab_size, task.model)
    except SteperError as error:
        message = str(error)
    first = first_message(message)
    if first is not None or data is None:
        raise TrainingError(first or f"job '{task.name}': no data")
    return data
