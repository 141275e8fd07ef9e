"""HotpotQA's official files and their hub copies (Yang et al., 2018)."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from steper_ray.corpora import fields
from steper_ray.corpora.pooled import Entry, gold_by_title, sentence_contexts
from steper_ray.schema import Question


class HotpotRecord(fields.Layout):
    """A test split has no answer and no supporting facts; a set over a corpus from elsewhere has no context."""

    id: fields.Id = Field(validation_alias=AliasChoices("_id", "id"))
    question: fields.Stripped
    answer: fields.OptionalAnswer = None
    supporting_facts: fields.Facts = ()
    context: fields.Context | None = None


def parse(record: fields.Record) -> Entry:
    """One record: its supporting facts name the gold passages (two, so two hops). Raises Malformed."""
    found = fields.validated(HotpotRecord, record)
    context = sentence_contexts(found.context or [])
    gold = gold_by_title(found.supporting_facts, context)
    question = Question(
        id=found.id,
        text=found.question,
        answers=fields.answers(found.answer),
        gold_ids=tuple(gold),
        hops=len(gold) or None,
        dataset="hotpotqa",
    )
    return Entry(question, context, gold)
