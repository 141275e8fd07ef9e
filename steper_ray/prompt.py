"""The prompt layout: one place that turns a question, its passages and the chain so far into text and tokens.

Rollouts, evaluation, the endpoint and the training examples all build prompts here and nowhere else, so
what training sees and what the engine sees is identical to the token. The layout is prefix-stable:
instruction and demonstrations, then passages in the order they came, then the question, then the chain.
Text is tokenised segment by segment and never across a boundary, so step s+1 repeats the tokens of step s
up to its last passage. This module knows `schema` alone: no model, no engine, no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from steper_ray.schema import Passage


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the project relies on."""

    bos_token_id: int | None
    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """Templates of one framework. `passage` takes {title} and {text}; `question` takes {question}.

    `joiner` stands before each piece of reasoning, the first included; `preamble` holds the instruction and
    the demonstrations, `attempt` a chain that was wrong (see `after`).
    """

    passage: str
    question: str
    joiner: str
    preamble: str = ""
    attempt: str = ""

    def after(self, question: str, wrong: Sequence[str]) -> Layout:
        """The layout of a second chance: it shows the wrong chain, and not the right answer.

        It stands in front of the passages, so the prompts of all steps begin alike.
        """
        said = clean(self.joiner.join(wrong))
        return replace(self, attempt=WRONG_ATTEMPT.format(question=clean(question), chain=said))

    def trunk_segments(self, passages: Sequence[Passage]) -> list[str]:
        """The preamble and the wrong attempt (if any), then one segment a passage."""
        blocks = [self.passage.format(title=clean(p.title), text=_quoted(clean(p.text))) for p in passages]
        return [segment for segment in (self.preamble, self.attempt) if segment] + blocks

    def question_segment(self, question: str) -> str:
        return self.question.format(question=clean(question))

    def chain_segments(self, chain: Sequence[str]) -> list[str]:
        """One segment a step, each with its joiner in front."""
        return [self.joiner + piece for piece in chain if piece]

    def text(self, question: str, passages: Sequence[Passage], chain: Sequence[str]) -> str:
        """The whole prompt as text: what a text-only endpoint is sent.

        Its tokenizer reads control tokens out of text, so what looks like one in the data is written otherwise.
        """
        shown = [Passage(p.id, defuse(p.title), defuse(p.text)) for p in passages]
        said = [defuse(piece) for piece in chain]
        trunk = replace(self, attempt=defuse(self.attempt)).trunk_segments(shown)
        return "".join([*trunk, self.question_segment(defuse(question)), *self.chain_segments(said)])


WRONG_ATTEMPT = (
    'An earlier attempt at the question "{question}" came to a wrong answer: {chain}\n'
    "Answer it again from the passages, step by step, and find where that attempt went wrong.\n\n"
)


def clean(text: str) -> str:
    """Passages and questions are data: line breaks inside them cannot forge a block of the layout."""
    return " ".join(text.split())


#: What a line of a layout begins with, which a passage's text, a line of its own, must not.
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
    """What is spelled like a control token gets a blank behind its bracket, and is text for every tokenizer."""
    return _CONTROL.sub(lambda match: f"{match.group()} ", text)


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text as text: a control token that is spelled out in it ('</s>') stays letters.

    Control tokens are put into a prompt as ids and nowhere else. Hugging Face's tokenizers would read them from text.
    """
    if not hasattr(tokenizer, "split_special_tokens"):
        return tokenizer.encode(text, add_special_tokens=False)
    reads_all: Any = tokenizer
    try:
        ids: list[int] = reads_all.encode(text, **_AS_TEXT)
    except ValueError:  # Mistral's own tokenizers refuse the option; they never read control tokens from text
        return tokenizer.encode(text, add_special_tokens=False)
    unmarked = _unmarked(reads_all)
    return ids if unmarked.isdisjoint(ids) else _cut_ids(reads_all, text, unmarked)


_AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True}
#: Added tokens that are text: blanks (Gemma's, OLMo's), and words that a vocabulary was extended by.
_WORDS = re.compile(r"[\w\s\u2581'.-]*")
_unmarked_ids: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()


def _unmarked(tokenizer: Any) -> frozenset[int]:
    """Added tokens that are not marked as special, such as Qwen's <tool_call>: the option above does not split them."""
    ids = _unmarked_ids.get(tokenizer)
    if ids is None:
        added = tokenizer.added_tokens_decoder if tokenizer.is_fast else {}  # Python's own split them all
        ids = frozenset(
            id for id, token in added.items() if not token.special and not _WORDS.fullmatch(token.content)
        )
        _unmarked_ids[tokenizer] = ids
    return ids


def _cut_ids(tokenizer: Any, text: str, unmarked: frozenset[int]) -> list[int]:
    """The ids of the text, cut in the middle of each of these tokens: its halves are letters."""
    read = tokenizer(text, **_AS_TEXT, return_offsets_mapping=True)
    ids: list[int] = read["input_ids"]
    spans = [span for id, span in zip(ids, read["offset_mapping"], strict=True) if id in unmarked]
    cuts = [(begin + end) // 2 for begin, end in spans if end - begin > 1]
    if not cuts:
        return ids
    pieces = (text[begin:end] for begin, end in pairwise((0, *cuts, len(text))))
    return [id for piece in pieces for id in _cut_ids(tokenizer, piece, unmarked)]


IRCOT = Layout(passage="Title: {title}\n{text}\n\n", question="Q: {question}\nA:", joiner=" ")
SELF_ASK = Layout(
    passage="Title: {title}\n{text}\n\n",
    question="Question: {question}\nAre follow up questions needed here: Yes.",
    joiner="\n",
)
#: What ReAct calls an observation is here the passages in front, so that the prompt stays prefix-stable: the chain
#: holds thoughts and actions alone.
REACT = Layout(passage="Title: {title}\n{text}\n\n", question="Question: {question}", joiner="\n")
LAYOUTS = {"ircot": IRCOT, "self_ask": SELF_ASK, "react": REACT}


@dataclass(slots=True)
class PromptEncoder:
    """Tokenises a layout's segments, each on its own, and remembers passages it has seen.

    Not thread-safe; one for each engine or data loader.
    """

    tokenizer: Tokenizer
    layout: Layout
    max_cached: int = 4096
    _cache: dict[str, list[int]] = field(default_factory=dict)

    def of(self, layout: Layout) -> PromptEncoder:
        """An encoder of another layout that remembers the same passages."""
        return replace(self, layout=layout)

    def segment(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = plain_ids(self.tokenizer, text)
            if len(self._cache) >= self.max_cached:
                self._cache.pop(next(iter(self._cache)))
            self._cache[text] = ids
        return ids

    def trunk(self, passages: Sequence[Passage]) -> list[int]:
        """Begin-of-sequence (if the tokenizer has one), preamble and passages."""
        bos = self.tokenizer.bos_token_id
        ids = [] if bos is None else [bos]
        for segment in self.layout.trunk_segments(passages):
            ids.extend(self.segment(segment))
        return ids

    def question(self, question: str) -> list[int]:
        return list(self.segment(self.layout.question_segment(question)))

    def chain(self, chain: Sequence[str]) -> list[int]:
        return [i for segment in self.layout.chain_segments(chain) for i in self.segment(segment)]

    def prompt(self, question: str, passages: Sequence[Passage], chain: Sequence[str]) -> list[int]:
        """Token ids of the prompt at one step."""
        return self.trunk(passages) + self.question(question) + self.chain(chain)

    def target(self, chain: Sequence[str]) -> list[int]:
        """Token ids of a training target: the cumulative chain and the end of sequence."""
        return [*self.chain(chain), self.tokenizer.eos_token_id]
