"""Between text and token ids: loading tokenizers, prompts as ids, tokens as whole characters, ends.

What every engine with a tokenizer shares. It knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from steper_ray.config import EngineConfig
from steper_ray.core.chat import Conversation
from steper_ray.core.errors import ModelError, PromptTooLongError, RefusedError
from steper_ray.core.tokenizers import Tokenizer, plain_ids
from steper_ray.generation.base import Prompt
from steper_ray.models import resolve_model
from steper_ray.pretrained import load_tokenizer

Decode = Callable[[Sequence[int]], str]

_INCOMPLETE = "\ufffd"  # what a decoder shows for bytes that are no whole character
_CONTEXT = (
    5  # last tokens of the prompt that are decoded with the first new one: they settle its leading space
)


def tokenizer_name(config: EngineConfig) -> str:
    """The folder or hub name of the engine's tokenizer."""
    name = config.tokenizer
    if name is None or name.startswith("miniature:"):
        return resolve_model(name or config.model)
    return name


def engine_tokenizer(config: EngineConfig, *, local: bool = False) -> Any:
    """The engine's tokenizer, which has an end of sequence; `local` asks no hub. Raises ModelError."""
    name = tokenizer_name(config)
    tokenizer = load_tokenizer(name, config.trust_remote_code, local=local)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"tokenizer '{name}' has no end-of-sequence token: set `eos_token` in its config")
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The prompt as ids. Text gets a begin-of-sequence (where the tokenizer has one), as in PromptEncoder, and no other
    control token. Raises RefusedError for a conversation, which belongs to an engine without a tokenizer."""
    if isinstance(prompt, Conversation):
        raise RefusedError("a conversation, and the engine takes token ids")
    if not isinstance(prompt, str):
        return list(prompt)
    ids = plain_ids(tokenizer, prompt)
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]


def model_prompt(tokenizer: Tokenizer, prompt: Prompt, vocabulary: int) -> list[int]:
    """The prompt as ids that a model with `vocabulary` embeddings knows. Raises RefusedError."""
    ids = prompt_ids(tokenizer, prompt)
    if ids and (min(ids) < 0 or max(ids) >= vocabulary):
        raise RefusedError(f"the prompt has token ids outside of the model's 0..{vocabulary - 1}")
    return ids


def fit_tokens(prompt_tokens: int, max_tokens: int, max_model_len: int) -> int:
    """`max_tokens`, clipped to what `max_model_len` leaves after the prompt.

    Raises PromptTooLongError where it leaves nothing, and RefusedError for an empty prompt.
    """
    if prompt_tokens == 0:
        raise RefusedError("the prompt is empty")
    if prompt_tokens >= max_model_len:
        raise PromptTooLongError(
            f"the prompt has {prompt_tokens} tokens, the engine takes {max_model_len} with the completion "
            "(engine.max_model_len): lower reasoning.max_passage_chars or reasoning.max_passages, or raise "
            "engine.max_model_len as far as the model goes"
        )
    return min(max_tokens, max_model_len - prompt_tokens)


def decoder_of(tokenizer: Any) -> Decode:
    """The tokenizer's decoding without special tokens, by the shortest way."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda ids: backend.decode(ids, skip_special_tokens=True)
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Detokenizer:
    """Turns one sequence's tokens into text as they come; a character is given out when it is whole.

    Each token is decoded together with the few before it, because its text may depend on them (leading spaces,
    characters of several tokens). Bytes that never become a character are never given out.
    """

    __slots__ = ("_decode", "_ids", "_read", "_shown")

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-_CONTEXT:])
        self._read = len(self._ids)
        self._shown = decode(self._ids).rstrip(_INCOMPLETE)

    def push(self, token_id: int) -> str:
        """The text that this token completes, often empty within a character."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if len(text) <= len(self._shown) or text.endswith(_INCOMPLETE):
            return ""
        new = text[len(self._shown) :]
        # The tokens of this piece are the context of the next one.
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._shown = self._decode(self._ids)
        return new
