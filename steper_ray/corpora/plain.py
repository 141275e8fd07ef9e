"""Passages `{id, title, text}` and questions `{id, question, answers, ...}`, under the names that people give them.

FlashRAG, BEIR, DPR, HippoRAG and HotpotQA's abstracts are of this kind. A passage or question without an id gets a
hash of its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, AliasPath, BeforeValidator, Field

from steper_ray.corpora import fields
from steper_ray.corpora.places import Malformed
from steper_ray.corpora.pooled import content_id, join_sentences, make_passage
from steper_ray.schema import Passage, Question, SubQuestion

_TEXTS = ("text", "contents", "content", "passage", "paragraph", "paragraph_text", "body")


def _joined(value: Any) -> Any:
    """HotpotQA's abstracts have a list of sentences, its articles a list of such lists."""
    if isinstance(value, list):
        parts = [_joined(part) for part in value]
        return join_sentences(parts) if all(isinstance(part, str) for part in parts) else value
    return value


class PassageRecord(fields.Layout):
    """`contents` (FlashRAG) is the title, a line's end and the text, where there is no `title`."""

    id: fields.Id | None = Field(None, validation_alias=AliasChoices("id", "_id", "pid", "docid", "doc_id"))
    title: fields.MaybeEmpty | None = None
    text: Annotated[fields.Text, BeforeValidator(_joined)] = Field(validation_alias=AliasChoices(*_TEXTS))


class HopRecord(fields.Layout):
    question: fields.Stripped
    answer: Annotated[fields.Id, AfterValidator(str.strip)]
    support_id: fields.Id | None = Field(None, validation_alias=AliasChoices("gold_id", "support_id"))


class QuestionRecord(fields.Layout):
    """A question without answers can be asked, not scored and not learned from."""

    id: fields.Id | None = Field(None, validation_alias=AliasChoices("id", "_id", "qid"))
    question: fields.Stripped = Field(validation_alias=AliasChoices("question", "text", "query"))
    answers: fields.Answers = Field(
        (),
        validation_alias=AliasChoices("answers", "answer", "golden_answers", AliasPath("metadata", "answer")),
    )
    gold_ids: fields.Items[fields.Id] = ()
    hops: Annotated[int, Field(ge=0)] | None = None
    decomposition: fields.Items[HopRecord] = ()
    dataset: fields.MaybeEmpty | None = None


class QrelRecord(fields.Layout):
    """A judgement of relevance, as BEIR's TSV files have them."""

    query: fields.Id = Field(validation_alias="query-id")
    passage: fields.Id = Field(validation_alias="corpus-id")
    score: float = 1


Qrels = Mapping[str, Sequence[str]]
"""Question id -> ids of the relevant passages."""


def parse_passage(record: fields.Record) -> Passage:
    """The title is empty where the record has none. Raises Malformed."""
    if not record.keys() & set(_TEXTS):
        raise Malformed(
            f"a passage has its text under one of {', '.join(_TEXTS)} (and perhaps an id and a title), and this record "
            f"has the fields {', '.join(list(record)[:20])}"
        )
    found = fields.validated(PassageRecord, record)
    title, text = found.title, found.text
    if title is None and "text" not in record and "\n" in text:
        first, _, rest = text.partition("\n")
        if rest.strip():
            title, text = first.strip().strip('"'), rest
    if found.id is None:
        return make_passage(title or "", text)
    return Passage(found.id, title or "", text)


def parse_question(record: fields.Record) -> Question:
    """Raises Malformed."""
    found = fields.validated(QuestionRecord, record)
    hops = tuple(SubQuestion(hop.question, hop.answer, hop.support_id) for hop in found.decomposition)
    return Question(
        id=content_id("", found.question) if found.id is None else found.id,
        text=found.question,
        answers=fields.answers(*found.answers),
        gold_ids=tuple(dict.fromkeys(found.gold_ids)),
        hops=(len(hops) or None) if found.hops is None else found.hops,
        decomposition=hops,
        dataset=found.dataset or "",
    )


def parse_qrel(record: fields.Record) -> QrelRecord:
    """Raises Malformed."""
    return fields.validated(QrelRecord, record)


def read_qrels(judgements: Iterable[tuple[object, QrelRecord]]) -> Qrels:
    """All judgements above 0, in memory."""
    found: dict[str, list[str]] = {}
    for _, judgement in judgements:
        if judgement.score > 0:
            found.setdefault(judgement.query, []).append(judgement.passage)
    return found
