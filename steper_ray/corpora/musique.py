"""MuSiQue's official files: JSONL with paragraphs, decomposition and aliases (Trivedi et al., 2022)."""

from __future__ import annotations

from steper_ray.corpora import fields
from steper_ray.corpora.pooled import Entry, make_passage
from steper_ray.corpora.records import Malformed
from steper_ray.schema import Passage, Question, SubQuestion


def parse(record: fields.Record) -> Entry | None:
    """One record, or None for a question that its paragraphs do not answer. Raises Malformed.

    Gold passages are those of the hops, in their order, then other supporting ones.
    """
    if record.get("answerable") is False:
        return None
    paragraphs = [fields.as_record(item, "paragraphs") for item in fields.items(record, "paragraphs")]
    by_index = {fields.as_index(item.get("idx"), "paragraphs.idx"): _passage(item) for item in paragraphs}
    hops = tuple(_hop(item, by_index) for item in fields.items(record, "question_decomposition"))
    supporting = (by_index[item["idx"]].id for item in paragraphs if item.get("is_supporting") is True)
    gold = tuple(dict.fromkeys((*(hop.support_id for hop in hops if hop.support_id), *supporting)))
    titles = {passage.id: passage.title for passage in by_index.values()}
    question = Question(
        id=fields.identifier(record, "id"),
        text=fields.text(record, "question").strip(),
        answers=fields.answers(fields.get(record, "answer"), fields.optional_items(record, "answer_aliases")),
        gold_ids=gold,
        hops=len(hops) or None,
        decomposition=hops,
        dataset="musique",
    )
    return Entry(question, tuple(by_index.values()), {gold_id: titles[gold_id] for gold_id in gold})


def _passage(item: fields.Record) -> Passage:
    title = fields.text(item, "title", empty=True).strip()
    return make_passage(title, fields.text(item, "paragraph_text").strip())


def _hop(item: object, paragraphs: dict[int, Passage]) -> SubQuestion:
    hop = fields.as_record(item, "question_decomposition")
    index = hop.get("paragraph_support_idx")
    if index is not None and fields.as_index(index, "paragraph_support_idx") not in paragraphs:
        raise Malformed(f"paragraph_support_idx {index} is no paragraph of this question")
    return SubQuestion(
        question=fields.text(hop, "question").strip(),
        answer=fields.as_id(fields.get(hop, "answer"), "answer").strip(),
        support_id=None if index is None else paragraphs[index].id,
    )
