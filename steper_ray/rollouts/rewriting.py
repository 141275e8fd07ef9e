"""A model writes a gold fact as one sentence; what it writes is taken only if nothing is lost and nothing is added.

Knows generators as a protocol, and no Ray.
"""

from __future__ import annotations

from steper_ray.config import PromptConfig, SamplingConfig
from steper_ray.core.answers import comparable
from steper_ray.core.claims import claims_of
from steper_ray.core.errors import RefusedError
from steper_ray.core.sentences import first_sentence
from steper_ray.frameworks import Fact, Layout
from steper_ray.generation.base import Generator, generate
from steper_ray.prompts import PromptWriter, encoder_for

_EXAMPLES = """\
Question: What city did Hank Snow live in when he died?
Answer: Nashville
Sentence: Hank Snow lived in Nashville when he died.

Question: Who directed Loose Ankles?
Answer: Ted Wilde
Sentence: Loose Ankles was directed by Ted Wilde.

Question: How many stores are in North Carolina?
Answer: 35
Sentence: There are 35 stores in North Carolina.

"""
LAYOUT = Layout(
    passage="",
    question=_EXAMPLES + "{question}",
    joiner=" ",
    answer="\nSentence:",
    instruction=(
        "Write the question and its answer as one plain statement. Keep every name, every number and the answer as "
        "they are, and add nothing. Reply with the sentence alone."
    ),
)


class Rewriter:
    """Statements by a model, greedily; the rules' sentence where the model's is not taken."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._sampling = SamplingConfig(max_tokens=96)
        tokenizer, style = generator.tokenizer, PromptConfig()
        self._prompts = (
            PromptWriter(LAYOUT, style) if tokenizer is None else encoder_for(tokenizer, LAYOUT, style)
        )

    async def statement(self, fact: Fact) -> str:
        """Raises GenerationError for a passing failure, and EngineDeadError."""
        asked = f"Question: {fact.question}\nAnswer: {fact.answer}"
        try:
            completion = await generate(
                self._generator, self._prompts.prompt(asked, (), ()), self._sampling, ("\n",)
            )
        except RefusedError:
            return fact.statement
        written = " ".join(completion.text.split())
        return written if is_faithful(written, fact) else fact.statement


def is_faithful(written: str, fact: Fact) -> bool:
    """Whether a text is one sentence that holds the answer and all names and numbers of the fact, and no others.

    Each name must be written as the fact writes it.
    """
    if first_sentence(f"{written} Next") != (written, True):
        return False
    text = f" {comparable(written)} "
    given = f" {comparable(fact.question)} {comparable(fact.answer)} {comparable(fact.statement)} "
    ours, theirs = claims_of(fact.statement), claims_of(written)
    wanted = (*ours.names, *ours.numbers, comparable(fact.answer))
    return (
        all(f" {one} " in text for one in wanted)
        and all(ours.wording[name] in written for name in ours.names)
        and all(word in given.split() for claim in (*theirs.names, *theirs.numbers) for word in claim.split())
    )
