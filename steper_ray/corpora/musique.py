"""MuSiQue's official files: JSONL with paragraphs, decomposition and aliases (Trivedi et al., 2022)."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from steper_ray.corpora import fields
from steper_ray.corpora.places import Malformed
from steper_ray.corpora.pooled import Entry, make_passage
from steper_ray.schema import Passage, Question, SubQuestion

Index = Annotated[int, Field(ge=0, strict=True)]


class Paragraph(fields.Layout):
    idx: Index
    title: Annotated[fields.MaybeEmpty, AfterValidator(str.strip)]
    paragraph_text: fields.Stripped
    is_supporting: bool | None = None


class Hop(fields.Layout):
    question: fields.Stripped
    answer: Annotated[fields.Id, AfterValidator(str.strip)]
    paragraph_support_idx: Index | None = None


class MusiqueRecord(fields.Layout):
    """A test split has no answer, no decomposition, and does not say which paragraphs support."""

    id: fields.Id
    question: fields.Stripped
    paragraphs: Annotated[list[Paragraph], BeforeValidator(fields.from_json)]
    question_decomposition: fields.Items[Hop] = ()
    answer: fields.OptionalAnswer = None
    answer_aliases: fields.Items[fields.MaybeEmpty] = ()
    answerable: bool | None = None


def parse(record: fields.Record) -> Entry | None:
    """One record, or None for a question that its paragraphs do not answer. Raises Malformed.

    Gold passages are those of the hops, in their order, then other supporting ones.
    """
    if record.get("answerable") is False:
        return None
    found = fields.validated(MusiqueRecord, record)
    by_index = {one.idx: make_passage(one.title, one.paragraph_text) for one in found.paragraphs}
    hops = tuple(_hop(hop, by_index) for hop in found.question_decomposition)
    supporting = (by_index[one.idx].id for one in found.paragraphs if one.is_supporting)
    gold = tuple(dict.fromkeys((*(hop.support_id for hop in hops if hop.support_id), *supporting)))
    titles = {passage.id: passage.title for passage in by_index.values()}
    question = Question(
        id=found.id,
        text=found.question,
        answers=fields.answers(found.answer, *found.answer_aliases),
        gold_ids=gold,
        hops=len(hops) or None,
        decomposition=hops,
        dataset="musique",
    )
    return Entry(question, tuple(by_index.values()), {gold_id: titles[gold_id] for gold_id in gold})


def _hop(hop: Hop, paragraphs: dict[int, Passage]) -> SubQuestion:
    index = hop.paragraph_support_idx
    if index is not None and index not in paragraphs:
        raise Malformed(f"paragraph_support_idx {index} is no paragraph of this question")
    return SubQuestion(hop.question, hop.answer, None if index is None else paragraphs[index].id)
