"""The project's own files: passages `{id, title, text}` and questions `{id, question, answers, ...}`.

A question has `question` or `text`, `answers` or `answer`, and may have `gold_ids`, `hops`, `dataset` and a
`decomposition` of `{question, answer, gold_id or support_id}`. Further fields are ignored.
"""

from __future__ import annotations

from steper_ray.corpora import fields
from steper_ray.corpora.records import Malformed
from steper_ray.schema import Passage, Question, SubQuestion


def parse_passage(record: fields.Record) -> Passage:
    """The title must be given, but may be empty. Raises Malformed."""
    return Passage(
        fields.identifier(record, "id"), fields.text(record, "title", empty=True), fields.text(record, "text")
    )


def parse_question(record: fields.Record) -> Question:
    """Raises Malformed."""
    gold = [fields.as_id(value, "gold_ids") for value in fields.optional_items(record, "gold_ids")]
    hops = tuple(_hop(item) for item in fields.optional_items(record, "decomposition"))
    hop_count = record.get("hops")
    dataset = record.get("dataset")
    return Question(
        id=fields.identifier(record, "id"),
        text=fields.text(record, _either(record, "question", "text")).strip(),
        answers=_answers(record),
        gold_ids=tuple(dict.fromkeys(gold)),
        hops=(len(hops) or None) if hop_count is None else fields.as_index(hop_count, "hops"),
        decomposition=hops,
        dataset="" if dataset is None else fields.as_text(dataset, "dataset", empty=True),
    )


def _either(record: fields.Record, name: str, other: str) -> str:
    """The name that the record uses; the first where it uses neither."""
    return other if record.get(name) is None and record.get(other) is not None else name


def _answers(record: fields.Record) -> tuple[str, ...]:
    name = _either(record, "answers", "answer")
    value = fields.get(record, name)
    values = [value] if isinstance(value, str) else fields.as_list(value, name)
    if not values:
        raise Malformed(f"field '{name}' is empty: a question needs at least one answer")
    return fields.answers(values[0], values[1:])


def _hop(item: object) -> SubQuestion:
    hop = fields.as_record(item, "decomposition")
    support = hop.get(_either(hop, "gold_id", "support_id"))
    return SubQuestion(
        question=fields.text(hop, "question").strip(),
        answer=fields.as_id(fields.get(hop, "answer"), "answer").strip(),
        support_id=None if support is None else fields.as_id(support, "gold_id"),
    )
