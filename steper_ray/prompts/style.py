"""The choice between plain text and a model's chat template, and prompts in that style.

- `auto` is chat where the tokenizer has a template; a student of ours is asked as it was trained.
- A student's tokenizer carries its style (MARK in tokenizer_config.json), wherever it is copied or uploaded to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steper_ray.config import PromptConfig
from steper_ray.core.chat import Conversation, chat_turns, has_template
from steper_ray.core.sums import PROVENANCE
from steper_ray.core.tokenizers import Tokenizer
from steper_ray.frameworks.layout import Layout, defuse
from steper_ray.prompts.encoder import PromptEncoder
from steper_ray.schema import Passage

MARK = "steper_prompt"


def style_of(tokenizer: Any, config: PromptConfig) -> PromptConfig:
    """The config with its format settled, `text` or `chat`."""
    noted = getattr(tokenizer, "init_kwargs", {}).get(MARK)
    if noted is not None and config.format == "auto":
        asked_otherwise = {} if config.instruction is None else {"instruction": config.instruction}
        return PromptConfig(**noted | asked_otherwise)
    if config.format != "auto":
        return config
    # A student without the mark was trained before there were chats.
    ours = (Path(str(getattr(tokenizer, "name_or_path", ""))) / PROVENANCE).is_file()
    chat = has_template(tokenizer) and not ours
    return config.model_copy(update={"format": "chat" if chat else "text"})


def mark_style(tokenizer: Any, config: PromptConfig) -> None:
    """Notes in a tokenizer, for when it is saved, how the model is asked."""
    tokenizer.init_kwargs[MARK] = style_of(tokenizer, config).model_dump(mode="json")


def end_of(tokenizer: Any, config: PromptConfig) -> int:
    """The token that ends a target in this style. Raises ModelError."""
    return encoder_for(tokenizer, Layout("", "", ""), config).end


def encoder_for(tokenizer: Tokenizer, layout: Layout, config: PromptConfig) -> PromptEncoder:
    """The encoder of a layout in the style that the config and the tokenizer ask for. Raises ModelError."""
    style = style_of(tokenizer, config)
    if style.format == "text":
        return PromptEncoder(tokenizer, layout)
    turns = chat_turns(tokenizer, instruction_of(layout, style), style.template_arguments)
    return PromptEncoder(tokenizer, layout.for_chat(), turns)


def instruction_of(layout: Layout, config: PromptConfig) -> str:
    return (layout.instruction if config.instruction is None else config.instruction).strip()


@dataclass(frozen=True, slots=True)
class PromptWriter:
    """Prompts for an engine without a tokenizer: plain text, or a conversation that the engine renders itself."""

    layout: Layout
    config: PromptConfig

    @property
    def chat(self) -> bool:
        """Whether its prompts may become turns of a chat."""
        return self.config.format != "text"

    def after(self, question: str, wrong: Sequence[str]) -> PromptWriter:
        """A writer of prompts that show a wrong chain."""
        return replace(self, layout=self.layout.after(question, wrong))

    def prompt(self, question: str, passages: Sequence[Passage], chain: Sequence[str]) -> str | Conversation:
        """The prompt at one step."""
        if self.config.format == "text":
            return self.layout.text(question, passages, chain)
        chat = self.layout.for_chat()
        user = chat.asked_text(question, passages)
        as_text = user + self.layout.answer + self.layout.chain_text(chain)
        return Conversation(
            defuse(instruction_of(self.layout, self.config)),
            user,
            chat.chain_text(chain),
            as_text if self.config.format == "auto" else None,
            self.config.template_arguments,
        )
