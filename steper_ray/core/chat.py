"""Chats: a prompt as turns, and a tokenizer's chat template cut where the contents of its turns stand.

- The template is rendered once, around marks, and cut at them; contents are tokenised apart from it.
- So passages are a prefix that all steps share, and the chain is the beginning of the reply: continued, never closed.
- A template that shows the date shows the same one every day: a prompt must not change with it.

Knows tokenizers and errors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steper_ray.core.errors import ModelError
from steper_ray.core.tokenizers import Tokenizer, plain_ids

_DATE = "26 Jul 2024"  # the default of Llama 3's templates
_SYSTEM, _USER, _REPLY = "steper-system-mark", "steper-user-mark", "steper-reply-mark"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt for an engine that writes the turns itself: the instruction, the user's turn, the reply so far.

    `text` is the same prompt without turns, for an engine that completes text; None where it must not be sent so.
    `arguments` are for the engine's chat template.
    """

    instruction: str
    user: str
    reply: str
    text: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template's own text: before the instruction, before the user's turn, before the reply, after it.

    Without an instruction `opening` stands before the user's turn, and `between` is empty.
    """

    opening: str
    between: str
    turn: str
    closing: str


@dataclass(frozen=True, slots=True)
class Turns:
    """Token ids around a prompt's segments: in front of all, between question and chain, and the one that ends it."""

    head: tuple[int, ...]
    turn: tuple[int, ...]
    end: int


def text_turns(tokenizer: Tokenizer) -> Turns:
    """Those of a prompt without turns: begin of sequence (if the tokenizer has one), nothing, end of sequence."""
    bos = tokenizer.bos_token_id
    return Turns(() if bos is None else (bos,), (), tokenizer.eos_token_id)


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def cut_template(tokenizer: Any, instruction: str, arguments: Mapping[str, Any]) -> ChatTemplate:
    """The template's text around an instruction and two turns; `arguments` are passed to the template.

    An instruction opens the user's turn where the template has no system role. Raises ModelError.
    """
    if not has_template(tokenizer):
        raise ModelError(
            f"reasoning.format=chat: the tokenizer of {tokenizer.name_or_path} has no chat template: set "
            "reasoning.format=text, or put the model's chat_template.jinja beside the tokenizer"
        )
    if instruction and (found := _cut(tokenizer, (_SYSTEM, _USER, _REPLY), arguments)) is not None:
        return ChatTemplate(*found)
    if (found := _cut(tokenizer, (_USER, _REPLY), arguments)) is None:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} does not show a user's turn and a reply once, as they are: "
            "set reasoning.format=text, or correct its chat_template.jinja or reasoning.template_arguments"
        )
    opening, turn, closing = found
    return ChatTemplate(opening, "\n\n" if instruction else "", turn, closing)


def chat_turns(tokenizer: Any, instruction: str, arguments: Mapping[str, Any]) -> Turns:
    """The ids of a chat around the user's turn and the reply; the reply ends with the template's end of turn.

    Raises ModelError as `cut_template`.
    """
    template = cut_template(tokenizer, instruction, arguments)
    head = [
        *_control_ids(tokenizer, template.opening),
        *(plain_ids(tokenizer, instruction) if instruction else ()),
        *_control_ids(tokenizer, template.between),
    ]
    turn = _control_ids(tokenizer, template.turn)
    return Turns(tuple(head), tuple(turn), _end(tokenizer, template.closing))


def end_of_turn(tokenizer: Any) -> int:
    """The token that ends a reply: the chat template's, or the end of sequence where there is no template."""
    eos: int = tokenizer.eos_token_id
    found = _cut(tokenizer, (_USER, _REPLY), {}) if has_template(tokenizer) else None
    return eos if found is None else _end(tokenizer, found[-1])


def _end(tokenizer: Any, closing: str) -> int:
    """The first control token behind a reply."""
    control = set(tokenizer.all_special_ids)
    ids = _control_ids(tokenizer, closing.rstrip())
    added = tokenizer.get_added_vocab().values()
    eos: int = tokenizer.eos_token_id
    return next((id for id in ids if id in control or id in added), eos)


def _control_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of the template's own text, in which control tokens are meant."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
    return ids


def _cut(tokenizer: Any, marks: tuple[str, ...], arguments: Mapping[str, Any]) -> list[str] | None:
    """The rendered template in pieces between the marks; None where it refuses a role, or changes or moves a mark."""
    from jinja2 import TemplateError

    roles = ("system", "user", "assistant")[-len(marks) :]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    fixed = {"date_string": _DATE, "strftime_now": lambda shape: _DATE}
    try:
        rest = tokenizer.apply_chat_template(messages, tokenize=False, **(fixed | dict(arguments)))
    except (TemplateError, TypeError, ValueError):
        return None
    pieces = []
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    return None if any(mark in rest for mark in marks) else [*pieces, rest]
