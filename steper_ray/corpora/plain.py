"""Passages `{id, title, text}` and questions `{id, question, answers, ...}`, as most corpora have them.

- An id may be `_id` (BEIR). A passage without one has a hash of its content (HippoRAG's corpora).
- A text may be a list of sentences (HotpotQA's abstracts), or `contents`: the title, a line's end, the text (FlashRAG).
- A question has `question` or `text`, and `answers`, `answer` or `golden_answers`; it may have `gold_ids`, `hops`,
  `dataset` and a `decomposition` of `{question, answer, gold_id or support_id}`. Further fields are ignored.
"""

from __future__ import annotations

from steper_ray.corpora import fields
from steper_ray.corpora.pooled import join_sentences, make_passage
from steper_ray.corpora.records import Malformed
from steper_ray.schema import Passage, Question, SubQuestion


def parse_passage(record: fields.Record) -> Passage:
    """The title is empty where the record has none. Raises Malformed."""
    name = fields.either(record, "text", "contents")
    value = fields.get(record, name)
    if isinstance(value, list):
        value = join_sentences([fields.as_text(sentence, name, empty=True) for sentence in value])
    title, text = record.get("title"), fields.as_text(value, name)
    if title is None:
        title = ""
        if name == "contents" and "\n" in text:
            title, _, text = text.partition("\n")
            title, text = title.strip().strip('"'), fields.as_text(text, name)
    title = fields.as_text(title, "title", empty=True)
    if "id" not in record and "_id" not in record:
        return make_passage(title, text)
    return Passage(_id(record), title, text)


def parse_question(record: fields.Record) -> Question:
    """Raises Malformed."""
    gold = [fields.as_id(value, "gold_ids") for value in fields.optional_items(record, "gold_ids")]
    hops = tuple(_hop(item) for item in fields.optional_items(record, "decomposition"))
    hop_count = record.get("hops")
    dataset = record.get("dataset")
    return Question(
        id=_id(record),
        text=fields.text(record, fields.either(record, "question", "text")).strip(),
        answers=_answers(record),
        gold_ids=tuple(dict.fromkeys(gold)),
        hops=(len(hops) or None) if hop_count is None else fields.as_index(hop_count, "hops"),
        decomposition=hops,
        dataset="" if dataset is None else fields.as_text(dataset, "dataset", empty=True),
    )


def _id(record: fields.Record) -> str:
    return fields.identifier(record, fields.either(record, "id", "_id"))


def _answers(record: fields.Record) -> tuple[str, ...]:
    name = fields.either(record, "answers", "answer", "golden_answers")
    value = fields.get(record, name)
    values = [value] if isinstance(value, str) else fields.as_list(value, name)
    if not values:
        raise Malformed(f"field '{name}' is empty: a question needs at least one answer")
    return fields.answers(values[0], values[1:])


def _hop(item: object) -> SubQuestion:
    hop = fields.as_record(item, "decomposition")
    support = hop.get(fields.either(hop, "gold_id", "support_id"))
    return SubQuestion(
        question=fields.text(hop, "question").strip(),
        answer=fields.as_id(fields.get(hop, "answer"), "answer").strip(),
        support_id=None if support is None else fields.as_id(support, "gold_id"),
    )
