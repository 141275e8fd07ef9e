"""HotpotQA's files: `_id, question, answer, supporting_facts, context` (Yang et al., 2018), and its hub copy's."""

from __future__ import annotations

from steper_ray.corpora import fields
from steper_ray.corpora.pooled import Entry, gold_by_title, sentence_contexts
from steper_ray.schema import Question


def parse(record: fields.Record) -> Entry:
    """One record: its supporting facts name the gold passages (two, so two hops). Raises Malformed."""
    context = sentence_contexts(fields.pairs(record, "context", "sentences", "content"))
    gold = gold_by_title(fields.pairs(record, "supporting_facts", "sent_id"), context)
    question = Question(
        id=fields.identifier(record, fields.either(record, "_id", "id")),
        text=fields.text(record, "question").strip(),
        answers=fields.answers(fields.get(record, "answer"), []),
        gold_ids=tuple(gold),
        hops=len(gold) or None,
        dataset="hotpotqa",
    )
    return Entry(question, context, gold)
