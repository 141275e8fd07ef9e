"""The text of a prompt: what stands where, and what passages and questions cannot forge.

- Every prompt of rollouts, evaluation, service and training is laid out here, so they are identical to the token.
- Prefix-stable: instruction and demonstrations, passages in the order they came, question, chain. Step s+1 repeats the
  segments of step s up to its last passage.
- Passages and questions are data: no line break, label or control token in them is one of the layout's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from steper_ray.schema import Passage


@dataclass(frozen=True, slots=True)
class Layout:
    """Templates of one framework. `passage` takes {title} and {text}; `question` takes {question}.

    `answer` opens the chain, and `joiner` stands before each piece of it; `preamble` holds the demonstrations,
    `attempt` a chain of the question that was wrong (see `after`) or is right (see `knowing`). `instruction` is a
    chat's system message; plain text leaves it out.
    """

    passage: str
    question: str
    joiner: str
    preamble: str = ""
    attempt: str = ""
    answer: str = ""
    instruction: str = ""
    in_turns: bool = False
    """Whether a chat's turn change opens the chain: then neither `answer` nor a first `joiner` does."""

    def after(self, question: str, wrong: Sequence[str]) -> Layout:
        """The layout of a second chance: it shows the wrong chain, and not the right answer.

        It stands in front of the passages, so the prompts of all steps begin alike.
        """
        said = clean(self.joiner.join(wrong))
        return replace(self, attempt=WRONG_ATTEMPT.format(question=clean(question), chain=said))

    def knowing(self, question: str, chain: Sequence[str]) -> Layout:
        """The layout of who knows a right chain of the question beforehand: it stands in front of the passages."""
        said = clean(self.joiner.join(chain))
        return replace(self, attempt=RIGHT_CHAIN.format(question=clean(question), chain=said))

    def for_chat(self) -> Layout:
        """The layout within a chat's turns: passages and question are the user's, the chain begins the reply."""
        return replace(self, in_turns=True)

    def trunk_segments(self, passages: Sequence[Passage]) -> list[str]:
        """The preamble and the wrong attempt (if any), then one segment a passage."""
        blocks = [self.passage.format(title=clean(p.title), text=_quoted(clean(p.text))) for p in passages]
        return [segment for segment in (self.preamble, self.attempt) if segment] + blocks

    def question_segment(self, question: str) -> str:
        opened = "" if self.in_turns else self.answer
        return self.question.format(question=clean(question)) + opened

    def chain_segments(self, chain: Sequence[str], *, begun: bool = False) -> list[str]:
        """One segment a step, each with its joiner in front. `begun`: earlier steps have written something."""
        segments = [self.joiner + piece for piece in chain if piece]
        if self.in_turns and segments and not begun:
            segments[0] = segments[0].removeprefix(self.joiner)
        return segments

    def text(self, question: str, passages: Sequence[Passage], chain: Sequence[str]) -> str:
        """The whole prompt as text: what a text-only endpoint is sent.

        Its tokenizer reads control tokens out of text, so what looks like one in the data is written otherwise.
        """
        return self.asked_text(question, passages) + self.chain_text(chain)

    def asked_text(self, question: str, passages: Sequence[Passage]) -> str:
        """The prompt up to the chain, as `text` writes it."""
        shown = [Passage(p.id, defuse(p.title), defuse(p.text)) for p in passages]
        trunk = replace(self, attempt=defuse(self.attempt)).trunk_segments(shown)
        return "".join([*trunk, self.question_segment(defuse(question))])

    def chain_text(self, chain: Sequence[str]) -> str:
        """The chain, as `text` writes it."""
        return "".join(self.chain_segments([defuse(piece) for piece in chain]))


WRONG_ATTEMPT = (
    'An earlier attempt at the question "{question}" came to a wrong answer: {chain}\n'
    "Answer it again from the passages, step by step, and find where that attempt went wrong.\n\n"
)
RIGHT_CHAIN = (
    'The right reasoning for the question "{question}" is: {chain}\n'
    "Answer it from the passages, step by step.\n\n"
)


def clean(text: str) -> str:
    """Passages and questions are data: line breaks inside them cannot forge a block of the layout."""
    return " ".join(text.split())


#: What a line of a layout begins with, which a passage's text must not.
_LABEL = re.compile(
    r"(?:title|q|a|question|answer|follow[ -]?up|intermediate answer|so the (?:final )?answer is"
    r"|are follow[ -]?up questions needed here|(?:thought|action|observation)(?: ?\d+)?) ?:",
    re.IGNORECASE,
)
#: Control tokens as the usual models spell them: Llama's and Qwen's, DeepSeek's, SentencePiece's, Gemma's, Mistral's.
_CONTROL = re.compile(
    r"<(?=\|[^<>|\s]{1,64}\|>|\uff5c[^<>\uff5c\s]{1,64}\uff5c>"
    r"|/?(?:s|pad|unk|bos|eos|mask|cls|sep|start_of_turn|end_of_turn|begin_of_text|end_of_text"
    r"|tool_call|tool_response|think)>|</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|CLS|SEP|MASK|PAD|UNK)\])",
    re.IGNORECASE,
)


def _quoted(text: str) -> str:
    """A passage's text that opens like a line of the layout, quoted as in a mail; any other as it is."""
    return f"> {text}" if _LABEL.match(text) else text


def defuse(text: str) -> str:
    """Puts a blank behind the bracket of what is spelled like a control token: text for every tokenizer."""
    return _CONTROL.sub(lambda match: f"{match.group()} ", text)
